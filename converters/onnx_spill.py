"""Keeps what batches of text give to the next part of a graph in a file: with 1.7B it is 150 MB."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgeqwen.errors import ArtifactError

if TYPE_CHECKING:
    from io import BufferedRandom

    from converters.onnx_grid import Floats
    from converters.onnx_parts import Values


@dataclass(frozen=True, slots=True)
class _Place:
    """A float32 array in the file."""

    offset: int
    shape: tuple[int, ...]


class Spill:
    """The batches, one at a time in memory. OSError where the disk is full."""

    def __init__(self, file: BufferedRandom, batches: Sequence[Values]) -> None:
        """`file` is empty; `batches` stay in memory until they are replaced."""
        self._file = file
        self._batches: list[Values] = list(batches)
        self._offsets: dict[tuple[int, int, int], int] = {}  # by batch, array of it, and bytes
        self._end = 0

    def __iter__(self) -> Iterator[Values]:
        for batch in self._batches:
            yield {name: self._read(value) if isinstance(value, _Place) else value for name, value in batch.items()}

    def __setitem__(self, at: int, values: Values) -> None:
        """Replace a batch; float32 arrays go to the file, over those of the same size that it had."""
        self._batches[at] = {
            name: self._write(at, number, value) if value.dtype == np.float32 else value
            for number, (name, value) in enumerate(values.items())
        }

    def _write(self, at: int, number: int, array: Floats) -> _Place:
        offset = self._offsets.setdefault((at, number, array.nbytes), self._end)
        self._end = max(self._end, offset + array.nbytes)
        self._file.seek(offset)
        self._file.write(np.ascontiguousarray(array).data)
        return _Place(offset, array.shape)

    def _read(self, place: _Place) -> Floats:
        array = np.empty(place.shape, np.float32)
        self._file.seek(place.offset)
        if self._file.readinto(array.data) != array.nbytes:
            raise ArtifactError("the disk gave back less than was written while calibrating")
        return array
