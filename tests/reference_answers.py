"""What the reference answers to nano's held-out prompts in four modes, greedy and seeded, and how close each draw was.

Recorded once in data/nano-answers.json.xz, so that engines are held to it where there is no torch. After nano has been
trained anew: `.venv-reference/bin/python tests/reference_answers.py`, about ten minutes on two cores.
"""

import hashlib
import json
import lzma
import sys
import tempfile
from dataclasses import astuple, dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from edgeqwen.backends.base import Backend, Chunk
from edgeqwen.catalog import NANO, convert, find
from edgeqwen.generation import common_prefix
from edgeqwen.language import Language, ModelCard
from edgeqwen.messages import messages_from
from edgeqwen.model import config_from, fold
from edgeqwen.sampling import Row, distribution, likeliest
from edgeqwen.tools import check_tools
from edgeqwen.types import Completion, Sampling, Timings

RECORD = Path(__file__).parent / "data" / "nano-answers.json.xz"
PROMPTS = [
    json.loads(line)
    for line in (Path(__file__).parents[1] / "benchmarks/nano/prompts.jsonl").read_text("utf-8").splitlines()
]
LENT = next(prompt["tools"][0] for prompt in PROMPTS if prompt["tools"])
MODES = {
    "thinking": {"thinking": True},
    "plain": {"thinking": False},
    "budget": {"thinking": True, "thinking_budget": 16},
    "tools": {"thinking": True},  # each prompt is offered a tool more than it has
}
SAMPLINGS = {"greedy": {"temperature": 0.0}, "sampled": {"temperature": 1.0, "top_p": 0.95, "top_k": 20}}
MAX_TOKENS, CONTEXT, STEP_ROWS = 160, 1024, 256
TOLERANCE = 1e-4  # of a logit, of what computes in 32 bits against the reference; nano's logits go up to about 30


@dataclass(frozen=True, slots=True)
class Question:
    """One cell of the grid."""

    number: int  # of the prompt
    mode: str
    sampling: str

    @property
    def prompt(self):
        return PROMPTS[self.number]

    @property
    def messages(self):
        return self.prompt["messages"]

    @property
    def tools(self):
        own = tuple(self.prompt["tools"] or ())
        if self.mode != "tools":
            return own
        return (*(tool for tool in own if tool["function"]["name"] != LENT["function"]["name"]), LENT)

    @property
    def options(self):
        """Of chat() and stream()."""
        return {**MODES[self.mode], **SAMPLINGS[self.sampling], "seed": self.number, "max_tokens": MAX_TOKENS}

    def begin(self, language):
        """The answer as it is before its first step."""
        config = config_from(self.options)
        return language.answer(messages_from(self.messages), check_tools(self.tools), config, context_length=CONTEXT)

    def __str__(self):
        return f"{self.number} {self.mode} {self.sampling}"


@dataclass(frozen=True, slots=True)
class Answer:
    """All ids of an answer, its last one too; `close` are the steps whose margin is below TOLERANCE."""

    ids: list[int]
    forced: list[int]  # places of ids that were not drawn: the sentence that ends a thinking budget
    close: list[list[float]]  # place, margin
    seen: str  # digest of what the user sees


QUESTIONS = [
    Question(number, mode, sampling)  # in the order that shares most of the KV cache
    for number in range(len(PROMPTS))
    for mode in MODES
    for sampling in SAMPLINGS
]


def seen(answer: Completion):
    """What a user sees of an answer but its times, and what of it was cached."""
    calls = [[call.name, call.arguments, call.id] for call in answer.tool_calls]
    usage = [answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.thinking_tokens]
    return [answer.thinking, answer.content, calls, answer.finish_reason, usage]


def digest(answer: Completion):
    return hashlib.sha256(json.dumps(seen(answer)).encode()).hexdigest()[:12]


def is_right(prompt, answer: Completion):
    if isinstance(prompt["expected"], str):
        return answer.content == prompt["expected"] and not answer.tool_calls
    return [{"name": c.name, "arguments": json.loads(c.arguments)} for c in answer.tool_calls] == [prompt["expected"]]


def margin(row: Row, sampling: Sampling, draw: float):
    """While no logit moves by as much as this, the same id is drawn.

    Sorted logits move no further than the logits do, so the drawn rank depends on them alone, and its id stays while
    its neighbours are twice as far. A sum of weights in relation to the rest moves by exp(2 * move / temperature).
    """
    if sampling.temperature == 0:
        first, second = row[likeliest(row, 2)]
        return float(first - second) / 2
    top = row[likeliest(row, sampling.top_k)].astype(np.float64)
    every = np.exp((top - top[0]) / sampling.temperature)
    _, kept = distribution(row, sampling)
    heights = np.cumsum(kept)
    rank = int(np.searchsorted(heights, draw * heights[-1], side="right"))
    borders = [_odds(share) - _odds(draw) for share in np.append(0.0, heights / heights[-1])[rank : rank + 2]]
    cut = np.append(0.0, np.cumsum(every) / every.sum())[len(kept) - 1 : len(kept) + 1]
    borders += [_odds(share) - _odds(sampling.top_p) for share in cut]
    gaps = -np.diff(row[likeliest(row, len(kept) + 1)].astype(np.float64))[max(0, rank - 1) : rank + 1]
    return float(min(*gaps, *(abs(border) * sampling.temperature for border in borders))) / 2


def _odds(share: float):
    """The logarithm of the odds; infinite at 0 and 1."""
    if share <= 0 or share >= 1:
        return np.inf if share >= 1 else -np.inf
    return float(np.log(share / (1 - share)))


class Rows:
    """The rows of logits of one answer: those along a draft of it in one forward, others step by step."""

    def __init__(self, backend: Backend, prompt, draft=()):
        """`draft` are ids that the answer may have; it ends with one that is never computed."""
        self._backend = backend
        self._path = [*prompt, *draft[:-1]]
        self._prompt = self._length = len(prompt)
        shared = min(common_prefix(prompt, backend.ids(0)), len(prompt) - 1)
        backend.truncate(0, shared)
        for start in range(shared, len(prompt) - 1, backend.step_tokens):
            end = min(start + backend.step_tokens, len(prompt) - 1)
            backend.forward([Chunk(0, prompt[start:end], "none")])
        (self._rows,) = backend.forward([Chunk(0, self._path[len(prompt) - 1 :], "all")])

    def after(self, ids):
        """The row behind ids that follow what was asked for before; () for the first one."""
        start = self._length
        self._length += len(ids)
        if self._path[start : self._length] == list(ids):
            return self._rows[self._length - self._prompt]
        self._path = []
        self._backend.truncate(0, start)
        return self._backend.forward([Chunk(0, ids)])[0][-1]


def ask(backend: Backend, language: Language, question: Question, draft=(), *, watch=True):
    """What a backend answers, as a record and whole; `watch` looks at every margin."""
    generation = question.begin(language)
    rows = Rows(backend, generation.next_ids, draft)
    sampling = generation._sampler._sampling
    draws = np.random.Generator(np.random.PCG64(sampling.seed))
    ids, forced, close, deltas = [], [], [], []
    row = rows.after(())
    while True:
        found = margin(row, sampling, draws.random()) if watch else np.inf
        if found < TOLERANCE:
            close.append([len(ids), float(f"{found:.2g}")])
        deltas.append(generation.step(row))
        forced += range(len(ids) + 1, len(ids) + len(generation.next_ids))
        ids += generation.next_ids
        if generation.finish_reason is not None:
            break
        row = rows.after(generation.next_ids)
    answer = fold([*deltas[:-1], replace(deltas[-1], timings=Timings())])
    return Answer(ids, forced, close, digest(answer)), answer


def language_of(artifact: Path, format: str = "gguf"):
    found = find(artifact, format=format)
    return Language(found.tokenizer, found.template, ModelCard(found.name, found.shape, found.end_ids))


def weights_digest():
    return hashlib.sha256((NANO / "model.safetensors").read_bytes()).hexdigest()


@lru_cache
def recorded():
    """question -> what the reference answered; fails where that was another nano."""
    record = json.loads(lzma.decompress(RECORD.read_bytes()))
    assert record["weights"] == weights_digest(), "another nano was recorded: see tests/reference_answers.py"
    return dict(zip(QUESTIONS, (Answer(*answer) for answer in record["answers"]), strict=True))


def record():
    """Ask the reference everything and write the file; an engine drafts the answers, which saves most of the time."""
    from edgeqwen.backends.llamacpp import LlamaCppBackend, LlamaCppSettings
    from edgeqwen.backends.reference import ReferenceBackend, ReferenceSettings

    answers = []
    with tempfile.TemporaryDirectory() as folder:
        artifact = convert("nano", Path(folder) / "nano", type="f32").path
        language = language_of(artifact)
        quick = LlamaCppBackend(find(artifact).weights_path, LlamaCppSettings(CONTEXT, threads=1, kv_type="f32"))
        reference = ReferenceBackend(NANO, ReferenceSettings(CONTEXT, threads=1, step_rows=STEP_ROWS))
        for question in QUESTIONS:
            draft, _ = ask(quick, language, question, watch=False)
            answer, _ = ask(reference, language, question, draft.ids)
            answers.append(astuple(answer))
            sys.stderr.write(f"\r{len(answers)} of {len(QUESTIONS)}")
        quick.close()
    text = json.dumps({"weights": weights_digest(), "answers": answers}, separators=(",", ":"))
    RECORD.write_bytes(lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME))


if __name__ == "__main__":
    record()
