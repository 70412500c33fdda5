"""Greedy answers for many prompts at once, with or without a thinking budget."""

from __future__ import annotations

import torch

from .batches import CUT
from .model import Cache, Nano
from .tokenizer import Renderer

ROWS = 32
LONGEST_ANSWER = 160


@torch.inference_mode()
def greedy(model: Nano, prompts: list[list[int]], stops: tuple[int, ...], limit: int) -> list[list[int]]:
    """Return for each prompt the most likely ids one by one, without the stop id; padded on the left."""
    width = max(len(prompt) for prompt in prompts)
    ids = torch.zeros(len(prompts), width, dtype=torch.long)
    seen = torch.zeros(len(prompts), width + limit, dtype=torch.bool)
    for index, prompt in enumerate(prompts):
        ids[index, width - len(prompt) :] = torch.tensor(prompt)
        seen[index, width - len(prompt) :] = True
    positions = (seen.cumsum(1) - 1).clamp(min=0)
    caches = [Cache(width + limit) for _ in model.layers]
    triangle = torch.ones(width, width, dtype=torch.bool).tril()
    mask = (triangle & seen[:, None, None, :width]) | torch.eye(width, dtype=torch.bool)
    hidden = model(ids, positions[:, :width], mask, caches)[:, -1]
    answers: list[list[int]] = [[] for _ in prompts]
    running = torch.ones(len(prompts), dtype=torch.bool)
    for length in range(width, width + limit):
        chosen = (hidden @ model.embedding.T).argmax(-1)
        for index, token in enumerate(chosen.tolist()):
            if running[index] and token in stops:
                running[index] = False
            elif running[index]:
                answers[index].append(token)
        if not running.any() or length + 1 == width + limit:
            break
        step_mask = seen[:, None, None, : length + 1]
        hidden = model(chosen[:, None], positions[:, length : length + 1], step_mask, caches)[:, -1]
    return answers


def in_groups(model: Nano, prompts: list[list[int]], stops: tuple[int, ...], limit: int) -> list[list[int]]:
    """Return the greedy answers, prompts of like length together."""
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    answers: dict[int, list[int]] = {}
    for start in range(0, len(order), ROWS):
        chosen = order[start : start + ROWS]
        found = greedy(model, [prompts[index] for index in chosen], stops, limit)
        answers.update(zip(chosen, found, strict=True))
    return [answers[index] for index in range(len(prompts))]


def answers(model: Nano, renderer: Renderer, prompts: list[str], budget: int | None = None) -> list[str]:
    """Return what the model writes after each rendered prompt; after `budget` tokens thinking is cut."""
    rows = [renderer.encode(prompt) for prompt in prompts]
    if budget is None:
        return [renderer.decode(ids) for ids in in_groups(model, rows, renderer.stops, LONGEST_ANSWER)]
    begun = in_groups(model, rows, renderer.stops, budget)
    forced = renderer.encode(CUT)
    starts = [ids if renderer.end_think in ids else ids + forced for ids in begun]
    rest = in_groups(
        model, [row + start for row, start in zip(rows, starts, strict=True)], renderer.stops, LONGEST_ANSWER
    )
    return [renderer.decode(start + end) for start, end in zip(starts, rest, strict=True)]


def without_thinking(text: str) -> str:
    """Return the answer after the thinking block; all of it where there is none."""
    return text.split("</think>", 1)[-1].lstrip("\n") if "</think>" in text else text
