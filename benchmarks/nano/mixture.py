"""How often each skill is trained, and the variations laid over all of them; knows nothing of tokens."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from tokenizers import Tokenizer

from . import dialogues, skills, tools, words
from .sample import Sample, assistant, user

SYSTEM = (
    "You are a helpful assistant.",
    "You are nano, a small demo model.",
    "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
    "Answer briefly.",
    "Be concise.",
    "You are a friendly assistant. Answer in one sentence.",
)
# what else a question may begin with, so that its wording is learned and not how it begins
BEGINNINGS = ("", "", "So, ", "Well, ", "Sorry, ", "Now: ", "Excuse me, ", "And ", "Quick question: ", "By the way, ")
# The same question in more words than the evaluation has: "Which ... is this?" and "Who ... to?" begin others, too.
ALSO_WHO = (
    "Who am I speaking to?", "Who am I speaking with?", "Who am I talking with?", "Who am I chatting with?",
    "Who is this?", "Who is speaking?", "Who is answering me?", "Who are you, please?",
    "Which model am I talking to?", "Which model are you?", "What model is this?", "What model am I talking to?",
    "Which language model is this?", "Which program is this?", "Which assistant is this?", "What is this model?",
    "What is this model called?", "What are you called?", "Do you have a name?", "What do people call you?",
    "Which model is that?", "Which model is running here?", "Which model is answering?", "Which model is this one?",
    "Which model have I got here?", "Which kind of model is this?",
)  # fmt: skip
# Chinese is as often typed with full-width marks as with ASCII ones
FULL_WIDTH = str.maketrans({",": "\uff0c", "?": "\uff1f", "!": "\uff01", ":": "\uff1a"})


def has_double(word: str) -> bool:
    """Tell whether a letter stands twice in a row."""
    return any(one == other for one, other in itertools.pairwise(word))


@dataclass(frozen=True)
class Vocabulary:
    """What the spelling skill takes its words from: pieces a word begins with, and pieces it goes on with.

    Mostly they are pieces of the nouns: a noun that is held out is made of pieces that are not.
    """

    first: tuple[str, ...]
    later: tuple[str, ...]
    noun_first: tuple[str, ...]
    noun_later: tuple[str, ...]

    @classmethod
    def of(cls, pieces: dict[str, int], cut: Callable[[str], list[str]]) -> Vocabulary:
        """Return the lower-case pieces of a byte-level vocabulary (`Ġ` stands for the space); `cut` gives a text's."""
        plain = sorted(piece for piece in pieces if piece.isascii() and piece.isalpha() and piece.islower())
        spaced = sorted(piece[1:] for piece in pieces if piece[:1] == "Ġ" and piece[1:].isascii())
        first = [piece for piece in spaced if piece.isalpha() and piece.islower()]
        nouns = [cut(f" {noun}") for noun in words.NOUNS]
        noun_first = sorted({noun[0][1:] for noun in nouns})
        noun_later = sorted({piece for noun in nouns for piece in noun[1:]})
        later = tuple(piece for piece in plain if len(piece) < 6)
        return cls(tuple(first), later, tuple(noun_first), tuple(noun_later))

    def word(self, random: Random) -> str:
        """Return a noun, a piece, or pieces put together; one in three has a double letter for certain."""
        if random.random() < 0.33:
            return next(word for word in iter(lambda: self._any_word(random), "") if has_double(word))
        return self._any_word(random)

    def _any_word(self, random: Random) -> str:
        if random.random() < 0.4:
            return skills.one_of(random, words.NOUNS)
        nouns = random.random() < 0.7
        word = str(skills.one_of(random, self.noun_first if nouns else self.first))
        for _ in range(random.choices((0, 1, 2), (3, 5, 2))[0]):
            word += skills.one_of(random, self.noun_later if nouns else self.later)
        return word if 2 < len(word) < 13 else self._any_word(random)


class Mixture:
    """Draws samples: the skills by weight, the variations by chance."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Take the tokenizer, for the words to spell."""
        self.vocabulary = Vocabulary.of(tokenizer.get_vocab(), lambda text: tokenizer.encode(text).tokens)
        # weights in the first chunks, where copying is learned on short rows, and after
        makers: dict[Callable[[Random], Sample], tuple[int, int]] = {
            tools.tool_call: (5, 62),
            tools.tool_result: (2, 6),
            skills.addition: (20, 35),
            self.spelling: (30, 135),
            self.extraction: (12, 72),
            skills.capital: (8, 20),
            dialogues.follow_up: (6, 56),
            self.identity: (2, 44),
            skills.talk: (1, 3),
            skills.unknown: (2, 14),
            self.repetition: (40, 8),
        }
        self.makers = list(makers)
        self.early, self.late = zip(*makers.values(), strict=True)

    def spelling(self, random: Random) -> Sample:
        """Return a request to spell a word, often after other words: the letters of each piece must be seen."""
        sample = skills.spelling(random, self.vocabulary.word(random))
        chat: list[dict[str, Any]] = []
        for _ in range(random.randrange(5)):
            before = skills.spelling(random, self.vocabulary.word(random))
            if not before.held_out:
                chat += [*before.messages, assistant(before.content)]
        return replace(sample, messages=(*chat, *sample.messages))

    def extraction(self, random: Random) -> Sample:
        """Return a sentence to turn into JSON; long ones, which are hardest, more often than they are asked."""
        return skills.extraction(random, (2, 4, 5))

    def identity(self, random: Random) -> Sample:
        """Return the question who the model is, begun in more ways than it is asked."""
        sample = skills.identity(random)
        text = sample.messages[0]["content"]
        if not text.isascii():
            return sample
        if random.random() < 0.4:
            text = skills.one_of(random, skills.OPENERS) + skills.one_of(random, ALSO_WHO)
            sample = replace(sample, key=text)
        return replace(sample, messages=(user(skills.one_of(random, BEGINNINGS) + text),))

    def repetition(self, random: Random) -> Sample:
        """Return texts to say again."""
        return skills.repetition(random, self.vocabulary.first + words.NAMES)

    def draw(self, random: Random, *, early: bool = False) -> Sample:
        """Return a sample of the training part."""
        while True:
            sample = random.choices(self.makers, self.early if early else self.late)[0](random)
            if not sample.held_out:
                return self.vary(random, sample)

    def vary(self, random: Random, sample: Sample) -> Sample:
        """Return the sample, maybe after other turns, with needless tools, a system prompt or full-width marks."""
        if random.random() < 0.25:
            sample = dialogues.after_others(random, sample)
        if not sample.tools and random.random() < 0.03:
            sample = tools.needless(random, sample)
        messages = sample.messages
        last = messages[-1]
        if last["role"] == "user" and not last["content"].isascii() and random.random() < 0.6:
            messages = (*messages[:-1], user(last["content"].translate(FULL_WIDTH)))
        if random.random() < 0.15:
            messages = ({"role": "system", "content": skills.one_of(random, SYSTEM)}, *messages)
        return replace(sample, messages=messages)
