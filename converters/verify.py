"""Reads a written GGUF file back through the strict reader: it is what was planned, and so far from its source."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from converters.quantize import dequantize
from edgeqwen.errors import ArtifactError
from edgeqwen.gguf import open_gguf

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy.typing as npt

    from converters.gguf_writer import Layout
    from edgeqwen.gguf import GgufFile

_SAMPLED_ROWS: Final = 4  # of each tensor, evenly spread


def verify_file(path: Path, layout: Layout, rows: Callable[[str, int, int], npt.NDArray[Any]]) -> dict[str, float]:
    """Compare a file with its plan; give the relative RMS error of sampled rows by tensor type.

    `rows(name, start, stop)` reads the source of a tensor by its GGUF name.

    ArtifactError when names, types, shapes or places differ or a value does not come back finite. That the bytes are
    the computed ones is checked while they are written (converters/stream.py).
    """
    with open_gguf(path) as file:
        found, planned = list(file.tensors.values()), list(layout.tensors)
        if file.size != layout.size or found != planned:
            differ = sorted({tensor.name for tensor in set(found) ^ set(planned)})
            raise ArtifactError(
                f"{path} has {file.size} bytes and was planned with {layout.size}; tensors that differ: {differ}"
            )
        return _errors(file, rows)


def _errors(file: GgufFile, rows: Callable[[str, int, int], npt.NDArray[Any]]) -> dict[str, float]:
    sums: dict[str, tuple[float, float]] = {}
    for tensor in file.tensors.values():
        step = max(1, tensor.shape[0] // _SAMPLED_ROWS) if len(tensor.shape) > 1 else tensor.shape[0]
        for row in range(0, tensor.shape[0], step):
            wanted = as_float32(rows(tensor.name, row, row + (step if len(tensor.shape) == 1 else 1))).reshape(-1)
            size = tensor.nbytes // (tensor.shape[0] if len(tensor.shape) > 1 else 1)
            stored = dequantize(file.data(tensor.name)[row * size : row * size + size], tensor.type)
            if not np.isfinite(stored).all():
                raise ArtifactError(f"{file.path}: row {row} of {tensor.name} ({tensor.type}) is not finite")
            error, power = sums.get(tensor.type, (0.0, 0.0))
            difference = stored - wanted
            sums[tensor.type] = (error + float(difference @ difference), power + float(wanted @ wanted))
    return {kind: math.sqrt(error / power) if power else 0.0 for kind, (error, power) in sorted(sums.items())}


def as_float32(rows: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Widen source rows (float32, float16, BF16 bits as uint16)."""
    if rows.dtype == np.uint16:
        return (rows.astype(np.uint32) << 16).view(np.float32)
    return rows.astype(np.float32)
