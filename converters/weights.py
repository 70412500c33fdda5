"""Rows of a model's weights by their GGUF names, wherever they lie: a checkpoint, or a GGUF file; it writes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np

from converters.architectures import expected_tensors
from converters.checkpoint import find_nonfinite
from edgeqwen.errors import CheckpointError
from edgeqwen.gguf import open_gguf, shape_of

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    import numpy.typing as npt

    from converters.checkpoint import Checkpoint
    from edgeqwen.types import ModelShape


class Weights(Protocol):
    """Tensors by GGUF name."""

    shape: ModelShape

    def kind(self, name: str) -> str:
        """The ggml type a tensor is stored in."""
        ...

    def rows(self, name: str, start: int, stop: int) -> npt.NDArray[np.float32]:
        """Rows as float32: [stop - start, n_in], or [stop - start] of a vector; CheckpointError for NaN or infinity."""
        ...

    def blocks(self, name: str, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """The stored bytes of rows, [stop - start, row bytes]."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class CheckpointWeights:
    """The tensors of an open checkpoint, which stays open behind it."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.shape = checkpoint.shape
        self._checkpoint = checkpoint
        self._names = {gguf: hf for hf, (gguf, _) in expected_tensors(checkpoint.shape).items()}

    def kind(self, name: str) -> str:
        return self._checkpoint.tensors[self._names[name]].dtype

    def rows(self, name: str, start: int, stop: int) -> npt.NDArray[np.float32]:
        found = self._checkpoint.rows(self._names[name], start, stop)
        bad = find_nonfinite(found)
        if bad is not None:
            row = start + bad // (found.size // len(found))
            raise CheckpointError(
                f"{self._checkpoint.path}: {self._names[name]}[{row}] has a value that is NaN or infinite; weights are "
                "finite: the file is damaged, or the training run diverged"
            )
        return widened(found)

    def blocks(self, name: str, start: int, stop: int) -> npt.NDArray[np.uint8]:
        found = self._checkpoint.rows(self._names[name], start, stop)
        return found.reshape(stop - start, -1).view(np.uint8)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """The checkpoint is its owner's."""


class GgufWeights:
    """The tensors of a GGUF file, checked when it is opened."""

    def __init__(self, path: Path) -> None:
        self._file = open_gguf(path)
        self.shape = shape_of(self._file)

    def kind(self, name: str) -> str:
        return self._file.tensors[name].type

    def rows(self, name: str, start: int, stop: int) -> npt.NDArray[np.float32]:
        kind, dims = self.kind(name), self._file.tensors[name].shape
        stored = self.blocks(name, start, stop).reshape(-1)
        plain = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}.get(kind)
        if plain is not None:
            found = widened(stored.view(plain))
        else:
            from converters.quantize import dequantize  # noqa: PLC0415 - needs ggml, the plain types do not

            found = dequantize(stored, kind)
        if not np.isfinite(found).all():
            raise CheckpointError(f"{self._file.path}: {name}, rows {start} to {stop - 1}: a value is not finite")
        return found.reshape(stop - start, *dims[1:])

    def blocks(self, name: str, start: int, stop: int) -> npt.NDArray[np.uint8]:
        data = self._file.data(name)
        return data.reshape(self._file.tensors[name].shape[0], -1)[start:stop]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def widened(rows: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Source rows (float32, float16, BF16 bits as uint16) as float32."""
    if rows.dtype == np.uint16:
        return (rows.astype(np.uint32) << 16).view(np.float32)
    return rows.astype(np.float32, copy=False)
