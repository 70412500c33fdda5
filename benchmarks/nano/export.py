"""Turns a training state into a model folder that transformers loads."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from . import folder
from .model import Nano, Shape
from .tokenizer import Renderer, cut

TOLERANCE = 1e-3  # of logits about 20


def verify(path: Path) -> float:
    """Return the largest difference of our logits to those of transformers; raise where it is not rounding."""
    from transformers import Qwen3ForCausalLM  # noqa: PLC0415 - needed for this check only

    theirs = Qwen3ForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    ours = folder.load(path)
    ids = torch.randint(0, ours.shape.vocab_size, (2, 64), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        difference = float((theirs(ids).logits - ours(ids) @ ours.embedding.T).abs().max())
    if difference > TOLERANCE:
        raise ValueError(f"{path}: logits differ from transformers' by {difference}, more than {TOLERANCE}")
    return difference


def main() -> int:
    """Export as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("state", type=Path, help="state.pt of a training")
    parser.add_argument("--out", type=Path, default=Path("edgeqwen/nano"))
    parser.add_argument("--qwen3", type=Path, help="a Qwen3 tokenizer's folder, to cut the small tokenizer anew")
    parser.add_argument("--verify", action="store_true", help="compare the logits with transformers' Qwen3ForCausalLM")
    options = parser.parse_args()
    if options.qwen3:
        cut(options.qwen3, options.out)
    model = Nano(Shape())
    model.load_state_dict(torch.load(options.state, weights_only=True)["model"])
    folder.write(model, Renderer(options.out), options.out)
    if options.verify:
        print(f"largest difference of a logit: {verify(options.out):.2g}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
