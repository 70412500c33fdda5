"""Tool calls and tool results: random spellings of the tools, random arguments, copied to the letter."""

from __future__ import annotations

import json
from random import Random
from typing import Any

from . import words
from .intents import INTENTS, Intent, Parameter
from .sample import Chat, Sample, assistant, call_text, user
from .skills import CHINESE_SHARE, city, invented, number, one_of, person

LANGUAGES = ("French", "German", "Spanish", "Italian", "Chinese", "Japanese", "English", "Russian", "Polish")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday", "May 3", "June 12", "March 8")
ROOMS = ("kitchen", "bedroom", "bathroom", "hall", "garage", "office", "living room", "garden")
CURRENCIES = ("USD", "EUR", "GBP", "JPY", "CNY", "CHF", "INR", "SEK")
STATUSES = ("ok", "done", "sent", "started", "failed", "waiting", "shipped")
ENDINGS = ("txt", "md", "json", "csv", "py", "log")
VERBS = ("find", "make", "check", "move", "open", "count", "load", "rate", "pick", "sort", "mark", "update")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
Tool = dict[str, Any]


def phrase(random: Random) -> str:
    """Return a few words that need not make sense."""
    parts = [one_of(random, words.NOUNS) for _ in range(random.randint(1, 3))]
    if random.random() < 0.3:
        parts.insert(random.randrange(len(parts) + 1), str(number(random, random.randint(1, 4))))
    if random.random() < 0.3:
        parts.insert(0, one_of(random, ("the", "a", "my", "new", "no", "buy", "call", "see")))
    if random.random() < 0.2:
        parts.append(invented(random))
    return " ".join(parts)


def email(random: Random) -> str:
    """Return an address."""
    return f"{person(random).lower()}@{one_of(random, words.NOUNS)}.{one_of(random, ('com', 'org', 'net'))}"


def formula(random: Random) -> str:
    """Return an expression of two or three numbers."""
    terms = [str(number(random, random.randint(1, 3))) for _ in range(random.randint(2, 3))]
    text = terms[0]
    for term in terms[1:]:
        text += one_of(random, ("+", "-", "*", "/")) + term
    return text


def value(random: Random, kind: str) -> str | int:  # noqa: C901, PLR0911, PLR0912
    """Return a random value of the kind that a parameter takes."""
    match kind:
        case "city":
            return city(random)
        case "city_zh":
            return one_of(random, words.CITIES_ZH)
        case "person":
            return person(random)
        case "small" | "degrees":
            return random.randint(1, 99)
        case "big":
            return number(random, random.randint(1, 6))
        case "clock":
            return f"{random.randrange(24):02d}:{random.randrange(60):02d}"
        case "phone":
            return str(number(random, random.randint(5, 9)))
        case "code":
            return "".join(one_of(random, (*LETTERS,)) for _ in range(random.randrange(3))) + str(
                number(random, random.randint(4, 7))
            )
        case "symbol":
            return "".join(random.choices(LETTERS, k=random.randint(3, 4)))
        case "path":
            return f"{one_of(random, words.NOUNS)}/{one_of(random, words.NOUNS)}.{one_of(random, ENDINGS)}"
        case "phrase":
            return phrase(random)
        case "email":
            return email(random)
        case "formula":
            return formula(random)
        case _:
            tables = {
                "language": LANGUAGES,
                "day": DAYS,
                "room": ROOMS,
                "state": ("on", "off"),
                "currency": CURRENCIES,
                "status": STATUSES,
            }
            return one_of(random, tables[kind])


def schema(name: str, description: str, parameters: list[tuple[str, str]]) -> Tool:
    """Return a tool in OpenAI's form."""
    return {
        "type": "function",
        "function": {
            "name": name,
            "description": description,
            "parameters": {
                "type": "object",
                "properties": {key: {"type": kind} for key, kind in parameters},
                "required": [key for key, _ in parameters],
            },
        },
    }


def invented_intent(random: Random) -> Intent:
    """Return a tool that no table knows, so that the schema has to be read."""
    noun = one_of(random, words.NOUNS)
    name = f"{one_of(random, VERBS)}_{noun}"
    used = random.sample([*words.NOUNS], random.randint(1, 2))
    kinds = [one_of(random, ("big", "code", "phrase", "city", "person", "small")) for _ in used]
    parameters = tuple(
        Parameter((key,), "integer" if kind in {"big", "small"} else "string", kind)
        for key, kind in zip(used, kinds, strict=True)
    )
    slots = " and ".join(f"{key} {{{index}}}" for index, key in enumerate(used))
    spoken = name.replace("_", " ")
    requests = (f"Use {name} with {slots}.", f"Please {spoken}: {slots}.", f"Call {name} with {slots}.")
    return Intent(name, (name,), f"{spoken.capitalize()}", parameters, requests)


class Toolbox:
    """One to three tools as offered in one chat, each with the spelling it got."""

    def __init__(self, random: Random, count: int) -> None:
        """Draw the tools and the names of their parameters."""
        known = random.sample(INTENTS, count)
        self.intents = [invented_intent(random) if random.random() < 0.2 else intent for intent in known]
        self.names = [one_of(random, intent.names) for intent in self.intents]
        self.keys: list[list[str]] = []
        for intent in self.intents:
            keys: list[str] = []
            for parameter in intent.parameters:
                keys.append(one_of(random, tuple(name for name in parameter.names if name not in keys)))
            self.keys.append(keys)
        self.schemas = tuple(
            schema(name, intent.description, [(k, p.type) for k, p in zip(keys, intent.parameters, strict=True)])
            for name, intent, keys in zip(self.names, self.intents, self.keys, strict=True)
        )

    def ask(self, random: Random, index: int) -> tuple[str, dict[str, Any], list[str | int]]:
        """Return a request for tool `index`, the call that serves it, and the values in it."""
        intent = self.intents[index]
        chinese = bool(intent.requests_zh) and random.random() < 1.5 * CHINESE_SHARE
        kinds = [p.kind for p in intent.parameters]
        if chinese and random.random() < 0.6:
            kinds = ["city_zh" if kind == "city" else kind for kind in kinds]
        values = [value(random, kind) for kind in kinds]
        text = one_of(random, intent.requests_zh if chinese else intent.requests).format(*values)
        arguments = dict(zip(self.keys[index], values, strict=True))
        return text, {"name": self.names[index], "arguments": arguments}, values

    @property
    def groups(self) -> set[str]:
        """Return the kinds of tools in the box."""
        return {intent.group for intent in self.intents}


def plan(call: dict[str, Any]) -> str:
    """Return what is thought before a call."""
    arguments = ", ".join(f"{key} is {item}" for key, item in call["arguments"].items())
    return f"I call {call['name']}: {arguments}."


def call_turn(call: dict[str, Any]) -> dict[str, Any]:
    """Return an assistant turn that calls a tool."""
    return {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": call}]}


def told(random: Random, intent: Intent, values: list[str | int]) -> tuple[str, str]:
    """Return what a tool sends back and the answer that tells it; the raw value where no wording is known."""
    if not intent.result:
        outcome = one_of(random, STATUSES)
        return json.dumps({"status": outcome}), f"The status is {outcome}."
    outcome = str(value(random, intent.result_kind))
    return intent.result.replace("{r}", outcome), intent.answer.replace("{r}", outcome).format(*values)


def earlier(random: Random, box: Toolbox, turns: int) -> Chat:
    """Return turns in which tools of the box were called before, some with their results."""
    chat: list[dict[str, Any]] = []
    for _ in range(turns):
        index = random.randrange(len(box.intents))
        text, call, values = box.ask(random, index)
        result, answer = told(random, box.intents[index], values)
        chat += [user(text), call_turn(call), {"role": "tool", "content": result}, assistant(answer)]
    return tuple(chat)


def tool_call(random: Random, *, history: bool = True) -> Sample:
    """Return a request that one of one to three tools serves."""
    box = Toolbox(random, random.choices((1, 2, 3), (4, 4, 2))[0])
    turns = random.choices((0, 1, 2, 3), (3, 3, 3, 2))[0] if history else 0
    before = earlier(random, box, turns)
    text, call, _ = box.ask(random, random.randrange(len(box.intents)))
    key = json.dumps(call["arguments"], ensure_ascii=False)
    return Sample("tools", (*before, user(text)), plan(call), call_text(call), key, box.schemas, call)


def tool_result(random: Random) -> Sample:
    """Return a chat that ends in a tool's result, to be told in words."""
    box = Toolbox(random, random.choices((1, 2), (3, 1))[0])
    index = random.randrange(len(box.intents))
    text, call, values = box.ask(random, index)
    result, answer = told(random, box.intents[index], values)
    turn = call_turn(call)
    if random.random() < 0.5:
        turn["reasoning_content"] = plan(call)
    messages = (user(text), turn, {"role": "tool", "content": result})
    thinking = "The tool has answered. I tell the user."
    return Sample("tool_result", messages, thinking, answer, result + text, box.schemas)


def needless(random: Random, sample: Sample) -> Sample:
    """Return the sample with tools offered that do not serve it."""
    box = Toolbox(random, random.randint(1, 2))
    if sample.skill == "unknown" or (sample.skill == "addition" and box.groups & {"arithmetic", "formula"}):
        return sample
    return Sample(**{**sample.__dict__, "tools": box.schemas})
