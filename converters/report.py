"""What a conversion did and how long its stages took."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Written:
    """The weights of one format. `errors`: relative RMS error of sampled rows, by tensor type."""

    file: str  # the payload's name
    type: str
    nbytes: int  # of all its files
    tensor_types: Mapping[str, int]
    errors: Mapping[str, float]
    sha256: str
    requantized: tuple[str, ...] = ()  # tensors that were quantized otherwise
    guard: Mapping[str, Any] | None = None  # converters.onnx_guard.Guard
    calibrated_on: int | None = None  # tokens of text that the rounding was calibrated on


@dataclass(frozen=True, slots=True)
class ConvertReport:
    """What a conversion did; with two formats `type` names both, figures are sums and `sha256` is the first one's."""

    path: Path
    type: str
    bytes_in: int
    bytes_out: int  # of the files of weights
    seconds: Mapping[str, float]  # by stage, and in total
    tensor_types: Mapping[str, int]
    errors: Mapping[str, float]  # relative RMS error of sampled rows, by tensor type
    tied_duplicate_dropped: bool
    sha256: str
    guard: Mapping[str, Any] | None = None  # of a 4-bit ONNX graph: converters.onnx_guard.Guard
    calibrated_on: int | None = None  # tokens of text that its rounding was calibrated on
    requantized: tuple[str, ...] = ()  # of a GGUF file's tensors: those that were quantized otherwise


class Clock:
    """Seconds by stage, rounded to the millisecond."""

    def __init__(self) -> None:
        self._began = self._last = time.perf_counter()
        self._laps: dict[str, float] = {}

    def lap(self, stage: str) -> None:
        """End a stage; one that comes again is added to itself."""
        now = time.perf_counter()
        self._laps[stage] = round(self._laps.get(stage, 0.0) + now - self._last, 3)
        self._last = now

    def finish(self) -> dict[str, float]:
        """All stages, and the total."""
        return self._laps | {"total": round(time.perf_counter() - self._began, 3)}
