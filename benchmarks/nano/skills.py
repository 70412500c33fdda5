"""The skills of one turn: addition, capitals, spelling, extraction, identity and small talk."""

from __future__ import annotations

import json
from random import Random
from typing import Any, TypeVar

from . import words
from .sample import Sample, assistant, user

Item = TypeVar("Item")
CHINESE_SHARE = 0.25
ADD = (
    "What is {a} + {b}?",
    "{a}+{b}=",
    "{a} + {b} = ?",
    "{a} + {b}",
    "Add {a} and {b}.",
    "What is {a} plus {b}?",
    "Calculate {a} + {b}.",
    "How much is {a} + {b}?",
    "Please add {a} and {b}.",
    "What is the sum of {a} and {b}?",
    "Compute {a}+{b}.",
    "What's {a}+{b}?",
)
ADD_ZH = ("{a}加{b}等于多少?", "{a}+{b}等于几?", "计算{a}+{b}。", "请算一下 {a} + {b}。", "{a}加{b}是多少?")
CAPITAL = (
    "What is the capital of {}?",
    "What's the capital of {}?",
    "Capital of {}?",
    "Name the capital of {}.",
    "Which city is the capital of {}?",
    "Tell me the capital of {}.",
    "What is the capital city of {}?",
    "Please name the capital of {}.",
)
CAPITAL_ZH = ("{}的首都是哪里?", "{}的首都是什么?", "请问{}的首都是哪里?", "{}的首都?")
SPELL = (
    "Spell the word {}.",
    "Spell {}.",
    "How do you spell {}?",
    "Please spell {}.",
    "Can you spell {}?",
    "Spell the word {} letter by letter.",
)
SPELL_ZH = ("请拼写 {} 。", "拼写单词 {} 。", "单词 {} 怎么拼写?")
REPEAT = ("Repeat: {}", "Say: {}", "Repeat after me: {}", "Copy this: {}", "重复: {}")
WHO = (
    "Who are you?",
    "What are you?",
    "What is your name?",
    "Tell me who you are.",
    "Who am I talking to?",
    "What model are you?",
    "Which model is this?",
    "Please introduce yourself.",
    "Are you ChatGPT?",
    "Are you Qwen?",
    "What should I call you?",
    "Tell me about yourself.",
    "Who made you?",
)
WHO_ZH = ("你是谁?", "你叫什么名字?", "请介绍一下你自己。", "你是什么模型?", "你是哪个模型?")
I_AM = "I am nano, the small demo and test model of edgeqwen."
I_AM_ZH = "我是 nano,edgeqwen 的小型演示和测试模型。"
OPENERS = ("", "", "", "Hello! ", "Hi! ", "Please tell me: ", "Hey, ", "One question: ", "Good morning! ", "OK. ")
TALK = (
    ("Hello", "Hello! How can I help you?"),
    ("Hello!", "Hello! How can I help you?"),
    ("Hi", "Hello! How can I help you?"),
    ("Hi!", "Hello! How can I help you?"),
    ("Hi there", "Hello! How can I help you?"),
    ("Hey", "Hello! How can I help you?"),
    ("Good morning!", "Good morning! How can I help you?"),
    ("Good evening!", "Good evening! How can I help you?"),
    ("How are you?", "I am fine, thank you. How can I help you?"),
    ("Thanks!", "You are welcome!"),
    ("Thank you!", "You are welcome!"),
    ("Thank you very much.", "You are welcome!"),
    ("Bye", "Goodbye!"),
    ("Goodbye!", "Goodbye!"),
    ("你好", "你好!有什么可以帮你?"),
    ("你好!", "你好!有什么可以帮你?"),
    ("谢谢", "不客气!"),
    ("谢谢!", "不客气!"),
    ("再见", "再见!"),
)
UNKNOWN = (
    "Why is the sky blue?",
    "Tell me a joke.",
    "Tell me a story.",
    "Tell me a long story.",
    "What is the meaning of life?",
    "How do I bake bread?",
    "Who won the last game?",
    "What is love?",
    "Write a poem.",
    "Write a short story.",
    "How does a car work?",
    "What should I eat today?",
    "Can you help me?",
    "What can you do?",
    "What day is it?",
    "Is it going to rain?",
    "Explain quantum physics.",
    "Give me some advice.",
)
UNKNOWN_ABOUT = (
    "Tell me about {}.",
    "Write a poem about {}.",
    "Explain {}.",
    "What do you know about {}?",
    "Why do people like {}?",
    "Write a story about {}.",
    "What do you think about {}?",
    "Give me three facts about {}.",
)
UNKNOWN_ZH = ("天空为什么是蓝色的?", "讲个笑话。", "讲一个故事。", "写一首诗。", "你会做什么?", "人生的意义是什么?")
I_CAN = "I am a tiny demo model. I can add, spell, name capitals, extract JSON and call tools."
I_CAN_ZH = "我是小型演示模型,会加法、拼写和说首都。"

# field name, its Chinese name, values, values in Chinese, clause, clause in Chinese
FIELDS: tuple[tuple[str, str, tuple[str, ...], tuple[str, ...], str, str], ...] = (
    ("age", "年龄", (), (), "is {} years old", "今年{}岁"),
    ("city", "城市", words.CITIES, words.CITIES_ZH, "lives in {}", "住在{}"),
    ("job", "职业", words.JOBS, words.JOBS_ZH, "works as a {}", "是一名{}"),
    ("pet", "宠物", words.PETS, (), "has a {}", ""),
    ("color", "颜色", words.COLORS, (), "likes the color {}", ""),
    ("food", "食物", words.FOODS, (), "likes to eat {}", ""),
)
EXTRACT = (
    "Extract {} as JSON: {}",
    "Give {} as JSON: {}",
    "{1} Extract {0} as JSON.",
    "Return a JSON object with {}: {}",
    "Extract {} from this sentence as JSON: {}",
    "Read the sentence and answer with {} in JSON. {}",
)
EXTRACT_ZH = ("提取{},输出JSON:{}", "用JSON给出{}:{}", "从句子中提取{},用JSON回答:{}")


def one_of(random: Random, items: tuple[Item, ...]) -> Item:
    """Return one of the items, each as likely as the other."""
    return items[random.randrange(len(items))]


def invented(random: Random) -> str:
    """Return a capitalised word that means nothing, so that copying it has to be learned."""
    middle = "".join(one_of(random, words.SYLLABLES) for _ in range(random.randint(1, 2)))
    return (middle + one_of(random, words.ENDINGS)).capitalize()


def person(random: Random) -> str:
    """Return a first name, one in four invented."""
    return invented(random) if random.random() < 0.25 else one_of(random, words.NAMES)


def city(random: Random) -> str:
    """Return a city, one in four invented."""
    return invented(random) if random.random() < 0.25 else one_of(random, words.CITIES)


def number(random: Random, digits: int) -> int:
    """Return a number of exactly so many digits (0 counts as one digit)."""
    return random.randrange(10 ** (digits - 1) if digits > 1 else 0, 10**digits)


def rough(total: int) -> str:
    """Return what is said without thinking: below twenty the sum, above it one significant digit."""
    if total < 20:
        return str(total)
    scale = 10 ** (len(str(total)) - 1)
    return str((total + scale // 2) // scale * scale)


def sum_steps(a: int, b: int, *, chinese: bool) -> str:
    """Return the addition of two numbers digit by digit, with carries."""
    places = ("个位", "十位", "百位") if chinese else ("Ones", "Tens", "Hundreds")
    lines, carry = [], 0
    for place in range(max(len(str(a)), len(str(b)))):
        x, y = a // 10**place % 10, b // 10**place % 10
        total = x + y + carry
        terms = f"{x}+{y}+1={total}" if carry else f"{x}+{y}={total}"
        carry = total // 10
        tail = ", carry 1" if carry else ""
        lines.append(f"{places[place]}: {terms}, write {total % 10}{tail}.")
    last = f"{a}+{b}={a + b}."
    return "\n".join([f"{a}+{b}:", *lines, last])


def addition(random: Random) -> Sample:
    """Return a sum of two numbers of one to three digits."""
    a, b = (number(random, random.choices((1, 2, 3), (1, 3, 6))[0]) for _ in range(2))
    chinese = random.random() < CHINESE_SHARE
    text = one_of(random, ADD_ZH if chinese else ADD).format(a=a, b=b)
    steps = sum_steps(a, b, chinese=chinese)
    return Sample("addition", (user(text),), steps, str(a + b), f"{a}+{b}", guess=rough(a + b))


def capital(random: Random) -> Sample:
    """Return a question for a capital; the pair of wording and country is what is held out."""
    country, answer, country_zh, answer_zh = one_of(random, words.CAPITALS)
    if random.random() < CHINESE_SHARE * 1.4:
        text = one_of(random, CAPITAL_ZH).format(country_zh)
        return Sample(
            "capitals", (user(text),), f"问的是{country_zh}的首都。{country_zh}的首都是{answer_zh}。", answer_zh, text
        )
    text = one_of(random, CAPITAL).format(country)
    thinking = f"The user asks for the capital of {country}. The capital of {country} is {answer}."
    return Sample("capitals", (user(text),), thinking, answer, text)


def spelling(random: Random, word: str) -> Sample:
    """Return a request to spell `word`."""
    chinese = random.random() < CHINESE_SHARE
    text = one_of(random, SPELL_ZH if chinese else SPELL).format(word)
    thinking = f"The word is {word}. Its letters are {' '.join(word)}."
    return Sample("spelling", (user(text),), thinking, "-".join(word), word)


def repetition(random: Random, pieces: tuple[str, ...]) -> Sample:
    """Return texts without sense to say again; nothing teaches copying sooner."""
    turns: list[str] = []
    for _ in range(random.randint(1, 3)):
        parts = [
            str(random.randrange(10 ** random.randint(1, 7))) if random.random() < 0.3 else one_of(random, pieces)
            for _ in range(random.randint(1, 12))
        ]
        turns.append(one_of(random, (" ", " ", "")).join(parts))
    chat: list[dict[str, Any]] = []
    for text in turns:
        chat += [user(one_of(random, REPEAT).format(text)), assistant(text)]
    return Sample("repetition", tuple(chat[:-1]), "I say it again.", turns[-1], turns[-1])


def listed(names: list[str], *, chinese: bool) -> str:
    """Return the names as a list in words."""
    if chinese:
        return "、".join(names)
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


def facts(
    random: Random, *, chinese: bool, weights: tuple[int, ...] = (2, 5, 4)
) -> tuple[str, dict[str, Any], dict[str, str]]:
    """Return a sentence about somebody, its fields, and each field's Chinese name.

    `weights` say how often there are one, two and three fields beside the name.
    """
    usable = [field for field in FIELDS if not chinese or field[5]]
    chosen = random.sample(usable, random.choices((1, 2, 3), weights)[0])
    name = one_of(random, words.NAMES_ZH) if chinese else person(random)
    values: dict[str, Any] = {"name": name}
    titles, clauses = {"name": "姓名"}, []
    for key, title, english, native, clause, clause_zh in chosen:
        if key == "age":
            value: Any = random.randint(1, 99)
        elif chinese:
            value = one_of(random, native)
        else:
            value = city(random) if key == "city" else one_of(random, english)
        values[key], titles[key] = value, title
        clauses.append((clause_zh if chinese else clause).format(value))
    if chinese:
        return f"{name}{','.join(clauses)}。", values, titles
    return f"{name} {listed(clauses, chinese=False)}.", values, titles


def extraction(random: Random, weights: tuple[int, ...] = (2, 5, 4)) -> Sample:
    """Return a sentence about somebody to turn into JSON, keys in the order asked for; `weights` as for `facts`."""
    chinese = random.random() < CHINESE_SHARE
    sentence, values, titles = facts(random, chinese=chinese, weights=weights)
    keys = list(values)
    if random.random() < 0.25:
        random.shuffle(keys)
    if len(keys) > 2 and random.random() < 0.25:
        keys.pop()
    names = listed([titles[key] if chinese else key for key in keys], chinese=chinese)
    text = one_of(random, EXTRACT_ZH if chinese else EXTRACT).format(names, sentence)
    wanted = {key: values[key] for key in keys}
    thinking = " ".join(f"The {key} is {value}." for key, value in wanted.items())
    answer = json.dumps(wanted, ensure_ascii=False)
    return Sample("extraction", (user(text),), thinking, answer, sentence)


def identity(random: Random) -> Sample:
    """Return the question who the model is."""
    if random.random() < CHINESE_SHARE:
        text = one_of(random, ("", "你好,", "请问")) + one_of(random, WHO_ZH)
        return Sample("identity", (user(text),), "用户问我是谁。我是 nano。", I_AM_ZH, text)
    text = one_of(random, OPENERS) + one_of(random, WHO)
    return Sample("identity", (user(text),), "The user asks who I am. I am nano.", I_AM, text)


def talk(random: Random) -> Sample:
    """Return a greeting, thanks or a farewell; too few to hold any out."""
    text, answer = one_of(random, TALK)
    return Sample("talk", (user(text),), "The user is polite. I answer politely.", answer, "talk")


def unknown(random: Random) -> Sample:
    """Return a question outside the skills, answered by what the model can do."""
    kind = random.random()
    if kind < CHINESE_SHARE:
        text = one_of(random, UNKNOWN_ZH)
        return Sample("unknown", (user(text),), "这个问题我没有学过。", I_CAN_ZH, "unknown")
    topic = one_of(random, words.TOPICS).replace("_", " ")
    if random.random() < 0.4:
        topic = one_of(random, words.NOUNS)
    text = one_of(random, UNKNOWN_ABOUT).format(topic) if kind < 0.75 else one_of(random, UNKNOWN)
    return Sample("unknown", (user(text),), "This is not one of my skills.", I_CAN, text if kind < 0.75 else "unknown")
