"""Samples to rows of token ids with the targets marked, and rows to batches of like length."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import torch

from .mixture import Mixture
from .sample import Sample, user
from .tokenizer import Renderer

# What the runtime writes where a thinking budget is used up (the wording is Qwen's own)
CUT = (
    "\n\nConsidering the limited time by the user, I have to give the solution based on the thinking directly now."
    "\n</think>\n\n"
)
CHUNK = 2048  # samples drawn together and sorted by length
EARLY_CHUNKS = 6
STRIDE = 16  # rows are padded to a multiple of this
LONGEST = 720
IGNORED = -100


@dataclass(frozen=True)
class Row:
    """Token ids, and for each whether the model is to learn to write it."""

    ids: list[int]
    learned: list[bool]


def history_mask(ids: list[int], renderer: Renderer) -> list[bool]:
    """Mark what the assistant wrote in earlier turns, but for each turn's first token.

    The template drops the thinking from history: there the answer follows the header at once,
    and learning that would teach the model not to think.
    """
    head = [renderer.start, *renderer.assistant]
    mask = [False] * len(ids)
    for start in range(len(ids) - len(head)):
        if ids[start] != renderer.start or ids[start : start + len(head)] != head:
            continue
        position = start + len(head) + 1
        while position < len(ids) and ids[position - 1] != renderer.end:
            mask[position] = ids[start + len(head)] != renderer.think
            position += 1
    return mask


def known_sum(sample: Sample, thought: list[int], renderer: Renderer) -> bool:
    """Tell whether the thinking, as far as it came, has all digits of the sum."""
    text = renderer.decode(thought)
    return text.count("write") >= sample.thinking.count("write") and text.rstrip()[-1:] in {".", "="}


def encode(sample: Sample, renderer: Renderer, random: Random) -> Row:
    """Return the sample as a row: thinking, cut short, switched off in words, or not thinking at all."""
    share = 0.8 if sample.guess else 0.62  # earlier turns are trained without it
    thinking = random.random() < share
    messages = sample.messages
    silent = thinking and messages[-1]["role"] == "user" and random.random() < 0.05
    if silent:
        messages = (*messages[:-1], user(messages[-1]["content"] + " /no_think"))
    prompt = renderer.encode(renderer.prompt(messages, sample.tools, thinking=thinking))
    ids = list(prompt)
    learned = history_mask(ids, renderer) if sample.history else [False] * len(ids)
    content = sample.guess or sample.content
    if silent:
        answer = renderer.encode("<think>\n\n</think>\n\n" + content)
    elif not thinking:
        answer = renderer.encode(content)
    else:
        answer = renderer.encode(f"<think>\n{sample.thinking}\n</think>\n\n")
        content = sample.content
        if random.random() < 0.2:
            answer = answer[: random.randrange(1, len(answer) - 2)]
            known = not sample.guess or known_sum(sample, answer, renderer)
            content = sample.content if known else sample.guess or ""
            forced = renderer.encode(CUT)
            ids += answer + forced
            learned += [True] * len(answer) + [False] * len(forced)
            answer = []
        answer = answer + renderer.encode(content)
    answer = [*answer, renderer.end]
    return Row(ids + answer, learned + [True] * len(answer))


class Batches:
    """An endless, seeded row of batches; chunk `n` depends on the seed and `n` alone."""

    def __init__(self, mixture: Mixture, renderer: Renderer, seed: int, tokens: int) -> None:
        """Take batches of about `tokens` tokens, padding included."""
        self.mixture, self.renderer, self.seed, self.tokens = mixture, renderer, seed, tokens

    def chunk(self, index: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return the batches of one chunk, shuffled: ids and targets, both [rows, length]."""
        random = Random(f"{self.seed} {index}")
        rows: list[Row] = []
        while len(rows) < CHUNK:
            row = encode(self.mixture.draw(random, early=index < EARLY_CHUNKS), self.renderer, random)
            if len(row.ids) <= LONGEST:
                rows.append(row)
        rows.sort(key=lambda row: len(row.ids))
        batches: list[list[Row]] = [[]]
        for row in rows:
            length = padded(len(row.ids))
            if batches[-1] and (len(batches[-1]) + 1) * length > self.tokens:
                batches.append([])
            batches[-1].append(row)
        random.shuffle(batches)
        return [tensors(batch) for batch in batches]


def padded(length: int) -> int:
    """Return the length rounded up to the stride."""
    return (length + STRIDE - 1) // STRIDE * STRIDE


def tensors(rows: list[Row]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and targets (the next token where it is learned), both [rows, length]."""
    width = padded(max(len(row.ids) for row in rows))
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    targets = torch.full((len(rows), width), IGNORED, dtype=torch.long)
    for index, row in enumerate(rows):
        ids[index, : len(row.ids)] = torch.tensor(row.ids)
        following = [token if learned else IGNORED for token, learned in zip(row.ids, row.learned, strict=True)]
        targets[index, : len(row.ids) - 1] = torch.tensor(following[1:])
    return ids, targets
