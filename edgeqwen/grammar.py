"""A grammar -> which tokens may come next in an answer, through llguidance; it knows no template and no engine.

The vocabulary is read when a structure is first asked for.
"""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from edgeqwen.errors import RequestError
from edgeqwen.sampling import Mask
from edgeqwen.structure import Structure, library, structure_of
from edgeqwen.tokenizer import Tokenizer
from edgeqwen.types import GenerationConfig, Tool

if TYPE_CHECKING:
    import llguidance

CACHED = 16  # compiled grammars of a model
# llguidance's own limits. A lexer's state takes 1-2 kB; so much fuel is 7 ms of one step.
_LIMITS = {"max_lexer_states": 30_000, "step_lexer_fuel": 100_000, "max_grammar_size": 100_000}

_PLACES = re.compile(r"^(at )?\d+\(\d+\): | 1 \| start: .*")  # in the grammar, which no caller has written


class Guide:
    """The tokens that may come next in one answer's content.

    `holds`: the grammar is that of the content, from its first token on. Otherwise the content is free but for calls.
    """

    def __init__(self, matcher: llguidance.LLMatcher, vocabulary: Vocabulary, structure: Structure) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary
        self._name = structure.name
        self.holds = not structure.calls_only
        self._inside = self.holds
        self.calls: bool | None = None  # whether the answer is one call or more; None: that is open yet

    @property
    def complete(self) -> bool:
        """The content is what it must be, and nothing can follow."""
        return self.holds and bool(self._matcher.is_stopped())

    def allowed(self) -> Mask | None:
        """Which ids may come next; None: all. RequestError where the grammar is too complex."""
        return self._vocabulary.mask(self._matcher, self._name) if self._inside else None

    def push(self, token_id: int) -> None:
        """Take the next id, one of those that are allowed."""
        opening = token_id == self._vocabulary.opening
        if self.calls is None:
            self.calls = opening
        if not self._inside:
            self._inside = opening
            return
        if not self._matcher.consume_token(token_id):
            raise _failed(self._matcher, self._name)
        if not self.holds and self._matcher.is_stopped():
            self._inside = False
            self._matcher.reset()

    def forced(self, most: int) -> tuple[int, ...]:
        """Take the ids that alone can follow, at most so many, and give them."""
        ids = self._matcher.compute_ff_tokens()[:most] if self._inside else []
        for token_id in ids:
            self.push(token_id)
        return tuple(ids)


class Vocabulary:
    """A model's tokens as llguidance wants them: 45 MB and a second for Qwen3's 151,936."""

    def __init__(self, tokenizer: Tokenizer, size: int, end_ids: frozenset[int]) -> None:
        self._library = library()
        self._size = size
        self.opening = tokenizer.id("<tool_call>")
        self._ends = sorted(end_ids)
        words = _Words(tokenizer, size, self._ends)
        self._tokens = self._library.LLTokenizer(words, n_vocab=size, eos_token=self._ends[0])  # 1.6 takes one only

    def compile(self, structure: Structure) -> llguidance.LLMatcher:
        """A matcher at its start; RequestError for what cannot be compiled, or allows nothing."""
        limits = self._library.LLParserLimits(verbose_errors=False, **_LIMITS)
        matcher: llguidance.LLMatcher = self._library.LLMatcher(
            self._tokens, structure.lark, log_level=0, limits=limits
        )
        if matcher.is_error():
            raise _failed(matcher, structure.name)
        if not self.mask(matcher, structure.name).any():
            raise RequestError(f"{structure.name}: there is nothing that it allows")
        return matcher

    def mask(self, matcher: llguidance.LLMatcher, name: str) -> Mask:
        """Which ids a matcher takes next; `name` is what an error calls it."""
        bits = np.frombuffer(matcher.compute_bitmask(), np.uint8)
        if matcher.is_error():
            raise _failed(matcher, name)
        mask = np.unpackbits(bits, count=self._size, bitorder="little").view(np.bool_)
        mask[self._ends] = mask[self._ends[0]]
        return mask


class Grammars:
    """Compiles the grammars of one model, and keeps those asked for last. Safe to use from several threads."""

    def __init__(self, tokenizer: Tokenizer, size: int, end_ids: frozenset[int]) -> None:
        """`size`: rows of the embedding, padding included."""
        self._tokenizer = tokenizer
        self._size = size
        self._end_ids = end_ids
        self._lock = threading.Lock()
        self._vocabulary: Vocabulary | None = None
        self._compiled: OrderedDict[str, llguidance.LLMatcher] = OrderedDict()

    def guide(self, config: GenerationConfig, tools: Sequence[Tool]) -> Guide | None:
        """What holds one answer to what was asked; None where it is free. RequestError names what cannot be asked."""
        structure = structure_of(config, tools, self._tag)
        if structure is None:
            return None
        vocabulary = self._loaded()
        return Guide(self._matcher(structure, vocabulary), vocabulary, structure)

    def _loaded(self) -> Vocabulary:
        with self._lock:
            if self._vocabulary is None:
                self._vocabulary = Vocabulary(self._tokenizer, self._size, self._end_ids)
            return self._vocabulary

    def _matcher(self, structure: Structure, vocabulary: Vocabulary) -> llguidance.LLMatcher:
        with self._lock:
            kept = self._compiled.get(structure.lark)
        compiled = kept or vocabulary.compile(structure)  # not under the lock: it may take a second
        with self._lock:
            self._compiled[structure.lark] = compiled
            self._compiled.move_to_end(structure.lark)
            while len(self._compiled) > CACHED:
                self._compiled.popitem(last=False)
            return compiled.deep_copy()

    def _tag(self, text: str) -> str | None:
        token_id = self._tokenizer.id(text)
        return None if token_id is None else f"<[{token_id}]>"


class _Words:
    """What llguidance's LLTokenizer asks of a tokenizer: bytes by id, which ids are no text, and how text is cut."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, size: int, ends: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self.tokens = [tokenizer.token_bytes(number) for number in range(size)]
        self.special_token_ids = sorted({*tokenizer.added.values(), *ends})  # <tool_call> as text is no tag
        self.eos_token_id = ends[0]

    def __call__(self, text: str | bytes) -> list[int]:
        return self._tokenizer.encode(text if isinstance(text, str) else text.decode())


def _failed(matcher: llguidance.LLMatcher, name: str) -> RequestError:
    why = _PLACES.sub("", " ".join(matcher.get_error().replace("<non-verbose/>", "").split()))
    if why.startswith("NoExtension"):
        return RequestError(f"{name}: there is nothing that it allows")
    return RequestError(f"{name} cannot be kept to: {why[:300]}")
