"""How often each skill is trained, and the variations laid over all of them; knows nothing of tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random

from . import dialogues, skills, tools, words
from .sample import Sample, user

SYSTEM = (
    "You are a helpful assistant.",
    "You are nano, a small demo model.",
    "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
    "Answer briefly.",
    "Be concise.",
    "You are a friendly assistant. Answer in one sentence.",
)
# Chinese is as often typed with full-width marks as with ASCII ones
FULL_WIDTH = str.maketrans({",": "\uff0c", "?": "\uff1f", "!": "\uff01", ":": "\uff1a"})


@dataclass(frozen=True)
class Vocabulary:
    """What the spelling skill takes its words from: pieces a word begins with, and pieces it goes on with."""

    first: tuple[str, ...]
    later: tuple[str, ...]

    @classmethod
    def of(cls, pieces: dict[str, int]) -> Vocabulary:
        """Return the lower-case pieces of a byte-level vocabulary (`Ġ` stands for the space)."""
        plain = sorted(piece for piece in pieces if piece.isascii() and piece.isalpha() and piece.islower())
        spaced = sorted(piece[1:] for piece in pieces if piece[:1] == "Ġ" and piece[1:].isascii())
        first = [piece for piece in spaced if piece.isalpha() and piece.islower()]
        return cls(tuple(first), tuple(piece for piece in plain if len(piece) < 6))

    def word(self, random: Random) -> str:
        """Return a noun, a piece, or pieces put together."""
        kind = random.random()
        if kind < 0.3:
            return skills.one_of(random, words.NOUNS)
        word = str(skills.one_of(random, self.first))
        for _ in range(random.choices((0, 1, 2), (3, 5, 2))[0]):
            word += skills.one_of(random, self.later)
        return word if 2 < len(word) < 13 else self.word(random)


class Mixture:
    """Draws samples: the skills by weight, the variations by chance."""

    def __init__(self, pieces: dict[str, int]) -> None:
        """Take the vocabulary of the tokenizer, for the words to spell."""
        self.vocabulary = Vocabulary.of(pieces)
        # weights in the first chunks, where copying is learned on short rows, and after
        makers: dict[Callable[[Random], Sample], tuple[int, int]] = {
            tools.tool_call: (5, 32),
            tools.tool_result: (2, 8),
            skills.addition: (20, 14),
            self.spelling: (20, 16),
            skills.extraction: (12, 12),
            skills.capital: (8, 8),
            dialogues.follow_up: (6, 9),
            skills.identity: (2, 2),
            skills.talk: (1, 2),
            skills.unknown: (2, 3),
            self.repetition: (40, 10),
        }
        self.makers = list(makers)
        self.early, self.late = zip(*makers.values(), strict=True)

    def spelling(self, random: Random) -> Sample:
        """Return a request to spell a word."""
        return skills.spelling(random, self.vocabulary.word(random))

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
        """Return the sample with needless tools, a system prompt or full-width marks, now and then."""
        if not sample.tools and random.random() < 0.03:
            sample = tools.needless(random, sample)
        messages = sample.messages
        last = messages[-1]
        if last["role"] == "user" and not last["content"].isascii() and random.random() < 0.6:
            messages = (*messages[:-1], user(last["content"].translate(FULL_WIDTH)))
        if random.random() < 0.15:
            messages = ({"role": "system", "content": skills.one_of(random, SYSTEM)}, *messages)
        return replace(sample, messages=messages)
