"""Trains `nano` from nothing on the CPU: seeded, resumable, with a constant rate and a straight decay at the end."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .batches import Batches
from .folder import load
from .mixture import Mixture
from .model import Nano, Shape
from .optimizer import Optimizer
from .quantization import rounded
from .tokenizer import Renderer

PART = 2048  # tokens a forward pass: small enough for the cache
SAVE_SECONDS = 240
LOG_STEPS = 50


@dataclass(frozen=True)
class Plan:
    """The settings of a training; rates are per step of `parts` forward passes."""

    steps: int
    decay_steps: int
    rounded_steps: int
    parts: int
    seed: int
    bfloat16: bool = False
    warmup_steps: int = 50
    matrix_rate: float = 0.01
    embedding_rate: float = 0.03
    norm_rate: float = 0.005
    decay: float = 0.02

    def scale(self, step: int) -> float:
        """Return the share of the rate at `step`: up, level, straight down."""
        return min(1.0, (step + 1) / self.warmup_steps, max(0.0, (self.steps - step) / self.decay_steps))

    def rounds(self, step: int) -> bool:
        """Tell whether this step is done on 4-bit weights: two of three in the last part."""
        return step >= self.steps - self.rounded_steps and step % 3 != 0


class Training:
    """A model, its optimizer and where it stands; everything it needs to go on is in `state.pt`."""

    def __init__(self, folder: Path, tokenizer: Path, plan: Plan) -> None:
        """Begin, or take up what `folder` holds."""
        torch.manual_seed(plan.seed)
        self.folder, self.plan = folder, plan
        renderer = Renderer(tokenizer)
        self.batches = Batches(Mixture(renderer.tokenizer), renderer, plan.seed, PART)
        self.model = Nano(Shape())
        self.optimizer = Optimizer(
            self.model,
            matrix_rate=plan.matrix_rate,
            embedding_rate=plan.embedding_rate,
            norm_rate=plan.norm_rate,
            decay=plan.decay,
        )
        self.step, self.chunk, self.position, self.tokens = 0, 0, 0, 0
        self.queue = self.batches.chunk(0)
        self.stopped = False

    def resume(self) -> None:
        """Take up the state in the folder."""
        state: dict[str, Any] = torch.load(self.folder / "state.pt", weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.chunk, self.position, self.tokens = state["where"]
        self.queue = self.batches.chunk(self.chunk)

    def save(self) -> None:
        """Write the state, whole or not at all."""
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "where": [self.step, self.chunk, self.position, self.tokens],
        }
        temporary = self.folder / "state.pt.tmp"
        torch.save(state, temporary)
        temporary.replace(self.folder / "state.pt")

    def part(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the next ids and targets."""
        if self.position >= len(self.queue):
            self.chunk, self.position = self.chunk + 1, 0
            self.queue = self.batches.chunk(self.chunk)
        self.position += 1
        return self.queue[self.position - 1]

    def advance(self) -> float:
        """Do one step and return the loss a target."""
        parts = [self.part() for _ in range(self.plan.parts)]
        count = sum(int((targets >= 0).sum()) for _, targets in parts)
        total = 0.0
        with rounded(self.model) if self.plan.rounds(self.step) else contextlib.nullcontext():
            for ids, targets in parts:
                with torch.autocast("cpu", torch.bfloat16, enabled=self.plan.bfloat16):
                    loss = self.model.loss(ids, targets) / count
                loss.backward()
                total += loss.item()
        self.optimizer.step(self.plan.scale(self.step))
        self.tokens += sum(ids.numel() for ids, _ in parts)
        self.step += 1
        return total

    def run(self) -> None:
        """Train to the end of the plan, or until asked to stop."""
        losses: list[float] = []
        started, saved, tokens = time.monotonic(), time.monotonic(), self.tokens
        while self.step < self.plan.steps and not self.stopped:
            losses.append(self.advance())
            now = time.monotonic()
            if self.step % LOG_STEPS == 0:
                speed = (self.tokens - tokens) / (now - started)
                mean = sum(losses) / len(losses)
                line = f"step {self.step} tokens {self.tokens} loss {mean:.4f} tokens/s {speed:.0f}"
                print(f"{line} minutes {(now - started) / 60:.1f}", flush=True)
                losses = []
            if now - saved > SAVE_SECONDS:
                self.save()
                saved = now
        self.save()

    def stop(self, *_: object) -> None:
        """End after this step."""
        self.stopped = True


def arguments() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for state.pt")
    parser.add_argument("--tokenizer", type=Path, default=Path("edgeqwen/nano"), help="folder of the small tokenizer")
    parser.add_argument("--steps", type=int, default=2520)
    parser.add_argument("--decay-steps", type=int, default=1700, help="the last steps, at a falling rate")
    parser.add_argument("--rounded-steps", type=int, default=500, help="the last steps, on 4-bit weights")
    parser.add_argument("--parts", type=int, default=2, help=f"forward passes of {PART} tokens a step")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--resume", action="store_true", help="go on from state.pt")
    parser.add_argument("--weights", type=Path, help="begin with the weights of this model folder, not with none")
    parser.add_argument("--bfloat16", action="store_true", help="multiply in BF16: faster on a processor that has it")
    parser.add_argument("--compile", action="store_true", help="fuse the layers (needs a C++ compiler)")
    return parser.parse_args()


def main() -> int:
    """Train as the command line says."""
    options = arguments()
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    plan = Plan(
        options.steps, options.decay_steps, options.rounded_steps, options.parts, options.seed, options.bfloat16
    )
    training = Training(options.out, options.tokenizer, plan)
    if options.weights:
        training.model.load_state_dict(load(options.weights).state_dict())
    if options.resume:
        training.resume()
    if options.compile:
        for layer in training.model.layers:
            layer.compile(dynamic=True)
    signal.signal(signal.SIGTERM, training.stop)
    training.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
