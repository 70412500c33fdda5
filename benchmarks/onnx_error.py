"""How far rounded graphs are from FP32: the mean KL divergence over a text, for our artifacts and genai's folders.

    python -m benchmarks.onnx_error FP32_ARTIFACT MODEL [MODEL ...] [--handbook debian-handbook_11.20220922_all.deb]

The text is the tests' corpus of many scripts, each a few lines; or prose in eight languages out of Debian's handbook
(apt-get download debian-handbook). A folder with genai_config.json is run as it is through onnxruntime, all others are
artifacts. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import lzma
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.handbook import prose
from edgeqwen.artifact import open_artifact
from edgeqwen.backends.base import Chunk
from edgeqwen.backends.ort import OrtBackend, OrtSettings
from edgeqwen.catalog import find
from edgeqwen.onnx_runtime import import_onnxruntime

TEXT = Path(__file__).resolve().parent.parent / "tests" / "data" / "corpus.txt.xz"
LENGTH = 192  # tokens of a piece
CORPUS_PIECES, PROSE_PIECES = 8, 16
Logits = npt.NDArray[np.float32]  # [LENGTH, vocabulary]
Run = Callable[[list[int]], Logits]


def pieces(artifact: Path, handbook: Path | None) -> list[list[int]]:
    """Pieces of the text, spread over it, in the model's own tokens."""
    text = prose(handbook) if handbook else lzma.decompress(TEXT.read_bytes()).decode("utf-8")
    ids = find(artifact, format="onnx").tokenizer.encode(text)
    starts = np.linspace(0, len(ids) - LENGTH, PROSE_PIECES if handbook else CORPUS_PIECES).astype(int)
    return [list(map(int, ids[start : start + LENGTH])) for start in starts]


@contextmanager
def ours(artifact: Path, threads: int) -> Iterator[Run]:
    """An artifact of ours through our engine."""
    found = open_artifact(artifact)
    settings = OrtSettings(LENGTH, threads, step_rows=LENGTH)
    backend = OrtBackend(found.file("onnx"), found.manifest.shape, settings)

    def run(ids: list[int]) -> Logits:
        backend.truncate(0, 0)
        return backend.forward([Chunk(0, ids, "all")])[0]

    yield run
    backend.close()


@contextmanager
def theirs(folder: Path, threads: int) -> Iterator[Run]:
    """A graph of genai's builder, whole, without a past."""
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options)
    decoder = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))["model"]["decoder"]
    empty = np.zeros((1, decoder["num_key_value_heads"], 0, decoder["head_size"]), np.float32)

    def run(ids: list[int]) -> Logits:
        feed: dict[str, Any] = {}
        for wanted in session.get_inputs():
            if wanted.name == "input_ids":
                feed[wanted.name] = np.array([ids], np.int64)
            elif wanted.name == "attention_mask":
                feed[wanted.name] = np.ones((1, len(ids)), np.int64)
            elif wanted.name == "position_ids":
                feed[wanted.name] = np.arange(len(ids), dtype=np.int64)[None]
            else:  # past_key_values.N.key: [batch, heads, past, head size]
                feed[wanted.name] = empty
        logits: Logits = session.run(["logits"], feed)[0][0]
        return logits

    yield run


def log_softmax(logits: Logits) -> npt.NDArray[np.float64]:
    """Of each row, in 64 bits."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def compare(exact: Path, models: list[Path], threads: int, handbook: Path | None = None) -> list[dict[str, Any]]:
    """Divergence in nats a token, and the share of tokens whose likeliest successor is another."""
    texts = pieces(exact, handbook)
    with tempfile.TemporaryDirectory(prefix="onnx-error-") as scratch:
        paths = [Path(scratch) / f"{number}.npy" for number in range(len(texts))]
        with ours(exact, threads) as run:
            for path, ids in zip(paths, texts, strict=True):
                np.save(path, run(ids))
        results = []
        for model in models:
            divergences: list[float] = []
            flips: list[bool] = []
            with (theirs if (model / "genai_config.json").exists() else ours)(model, threads) as run:
                for path, ids in zip(paths, texts, strict=True):
                    wanted, got = (log_softmax(logits) for logits in (np.load(path), run(ids)))
                    divergences += map(float, (np.exp(wanted) * (wanted - got)).sum(axis=-1))
                    flips += map(bool, wanted.argmax(axis=-1) != got.argmax(axis=-1))
            results.append({
                "model": model.name,
                "divergence": float(np.mean(divergences)),
                "flipped_share": float(np.mean(flips)),
                "tokens": len(flips),
            })  # fmt: skip
    return results


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("exact", type=Path)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--handbook", type=Path, help="take its prose as the text")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    print(json.dumps(compare(options.exact, options.models, options.threads, options.handbook), indent=1))


if __name__ == "__main__":
    main()
