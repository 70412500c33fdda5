"""Turns a training state into a model folder that transformers loads."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from . import folder
from .model import Nano, Shape
from .tokenizer import Renderer, cut


def main() -> int:
    """Export as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("state", type=Path, help="state.pt of a training")
    parser.add_argument("--out", type=Path, default=Path("edgeqwen/nano"))
    parser.add_argument("--qwen3", type=Path, help="a Qwen3 tokenizer's folder, to cut the small tokenizer anew")
    options = parser.parse_args()
    if options.qwen3:
        cut(options.qwen3, options.out)
    model = Nano(Shape())
    model.load_state_dict(torch.load(options.state, weights_only=True)["model"])
    folder.write(model, Renderer(options.out), options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
