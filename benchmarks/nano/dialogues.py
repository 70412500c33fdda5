"""Chats of several turns: the last answer depends on an earlier one, or must not."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any

from . import words
from .sample import Sample, assistant, user
from .skills import (
    CAPITAL,
    CAPITAL_ZH,
    EXTRACT,
    addition,
    capital,
    city,
    extraction,
    facts,
    identity,
    listed,
    one_of,
    person,
    rough,
    spelling,
    sum_steps,
    talk,
    unknown,
)

AND_OF = ("And of {}?", "And {}?", "What about {}?", "And the capital of {}?", "Now {}.")
AND_OF_ZH = ("{}呢?", "那{}呢?")
SPELL_IT = ("Spell it.", "How do you spell it?", "Please spell that.", "Now spell it.")
ADD_TO_IT = ("Add {} to that.", "Now add {}.", "And plus {}?", "Plus {}?")
NAME_AGAIN = ("What is my name?", "Do you know my name?", "Who am I?", "Say my name.")
CITY_AGAIN = ("Where do I live?", "Which city do I live in?", "In which city do I live?")
FIELD_AGAIN = ("What is the {}?", "Tell me the {}.", "And what is the {}?", "Only the {}, please.")


def next_capital(random: Random) -> Sample:
    """Ask for a capital, then for that of another country."""
    first, second = random.sample(words.CAPITALS, 2)
    if random.random() < 0.4:
        chat = (user(one_of(random, CAPITAL_ZH).format(first[2])), assistant(first[3]))
        follow = one_of(random, AND_OF_ZH).format(second[2])
        thinking, answer = f"问的是{second[2]}的首都。{second[2]}的首都是{second[3]}。", second[3]
    else:
        chat = (user(one_of(random, CAPITAL).format(first[0])), assistant(first[1]))
        follow = one_of(random, AND_OF).format(second[0])
        thinking = f"The user asks for the capital of {second[0]}. The capital of {second[0]} is {second[1]}."
        answer = second[1]
    return Sample("follow_up", (*chat, user(follow)), thinking, answer, first[0] + second[0])


def spelled_capital(random: Random) -> Sample:
    """Ask for a capital, then for its spelling; capitals of two words are left out."""
    country, answer, *_ = one_of(random, tuple(row for row in words.CAPITALS if " " not in row[1]))
    question = one_of(random, CAPITAL).format(country)
    follow = one_of(random, SPELL_IT)
    thinking = f"The word is {answer}. Its letters are {' '.join(answer)}."
    return Sample(
        "follow_up", (user(question), assistant(answer), user(follow)), thinking, "-".join(answer), question + follow
    )


def more_to_add(random: Random) -> Sample:
    """Ask for a sum, then add to it; the first answer is not trained on, for it was thought."""
    first = addition(random)
    total, more = int(first.content), random.randint(1, 99)
    if total + more > 999:
        return more_to_add(random)
    chat = (*first.messages, assistant(first.content), user(one_of(random, ADD_TO_IT).format(more)))
    steps = sum_steps(total, more, chinese=False)
    answer = str(total + more)
    return Sample(
        "follow_up_addition", chat, steps, answer, f"{total}+{more}", guess=rough(total + more), history=False
    )


def remembered(random: Random) -> Sample:
    """Tell name and city, then ask for one of them."""
    name, home = person(random), city(random)
    opening = one_of(
        random, ("My name is {0} and I live in {1}.", "I am {0} from {1}.", "Hello, I am {0}. I live in {1}.")
    )
    chat = (user(opening.format(name, home)), assistant(f"Nice to meet you, {name}!"))
    if random.random() < 0.5:
        follow, answer = one_of(random, NAME_AGAIN), f"Your name is {name}."
    else:
        follow, answer = one_of(random, CITY_AGAIN), f"You live in {home}."
    thinking = f"The user is {name} and lives in {home}."
    return Sample("follow_up", (*chat, user(follow)), thinking, answer, f"{name} {home}")


def field_again(random: Random) -> Sample:
    """Extract JSON, then ask for one of its fields."""
    sentence, values, _ = facts(random, chinese=False)
    answer = json.dumps(values, ensure_ascii=False)
    keys = list(values)
    text = one_of(random, EXTRACT).format(listed(keys, chinese=False), sentence)
    key = one_of(random, tuple(keys))
    chat = (user(text), assistant(answer), user(one_of(random, FIELD_AGAIN).format(key)))
    return Sample("follow_up", chat, f"The {key} is {values[key]}.", str(values[key]), sentence)


def unrelated(random: Random) -> Sample:
    """Ask something, then for a capital in full, so that a history does not always matter."""
    first, second = addition(random), capital(random)
    chat = (*first.messages, assistant(first.content), *second.messages)
    return Sample("follow_up", chat, second.thinking, second.content, first.key + second.key, history=False)


KINDS = (
    (next_capital, 3),
    (spelled_capital, 2),
    (more_to_add, 2),
    (remembered, 3),
    (field_again, 3),
    (unrelated, 1),
)


def follow_up(random: Random) -> Sample:
    """Return a chat of two turns."""
    make, _ = random.choices(KINDS, [weight for _, weight in KINDS])[0]
    return make(random)


def noun(random: Random) -> Sample:
    """Return a noun to spell."""
    return spelling(random, one_of(random, words.NOUNS))


# what else a chat may have been about: one turn each, without tools
TOPICS: tuple[Callable[[Random], Sample], ...] = (addition, capital, noun, extraction, identity, talk, unknown)


def after_others(random: Random, sample: Sample) -> Sample:
    """Return the sample after one or two turns that it has nothing to do with.

    Those are not trained on where one is a sum, for its answer was thought.
    """
    chat: list[dict[str, Any]] = []
    sums = False
    for _ in range(random.choice((1, 1, 2))):
        other = one_of(random, TOPICS)(random)
        while other.held_out:
            other = one_of(random, TOPICS)(random)
        sums = sums or other.guess is not None
        chat += [*other.messages, assistant(other.content)]
    return replace(sample, messages=(*chat, *sample.messages), history=sample.history and not sums)


def other_topic(random: Random) -> Sample:
    """Ask something after turns about something else."""
    sample = one_of(random, TOPICS[:5])(random)
    skill = "other_topic_addition" if sample.guess is not None else "other_topic"
    return replace(after_others(random, sample), skill=skill)
