"""What this process takes of memory: pages of mapped files and anonymous ones apart, at their peaks."""

from __future__ import annotations

import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

STATUS = Path("/proc/self/status")
EVERY_S = 0.02


@dataclass(frozen=True, slots=True)
class Memory:
    """Peaks in bytes; None where the system does not say. The parts peak at different times: they need not add up."""

    peak_bytes: int | None  # resident at once
    mapped_bytes: int | None  # of files: the system can drop them and read them again
    anonymous_bytes: int | None  # all else


class MemoryWatch:
    """Use in a `with` statement; looks 50 times a second, and `memory` says what was seen so far."""

    def __init__(self, status: Path = STATUS) -> None:
        self._status = status
        self._mapped = self._anonymous = 0
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory", daemon=True)

    @property
    def memory(self) -> Memory:
        found = self._look()
        if found is None:
            return Memory(_peak_of_rusage(), None, None)
        return Memory(found["VmHWM"], self._mapped, self._anonymous)

    def _watch(self) -> None:
        while self._look() is not None and not self._left.wait(EVERY_S):
            pass

    def _look(self) -> dict[str, int] | None:
        """The kernel's figures in bytes; None where there are none."""
        try:
            lines = self._status.read_text(encoding="ascii", errors="replace").splitlines()
            found = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.endswith(" kB")}
            self._mapped = max(self._mapped, found["RssFile"] + found["RssShmem"])
            self._anonymous = max(self._anonymous, found["RssAnon"])
        except (OSError, KeyError, ValueError):
            return None
        return found if "VmHWM" in found else None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._left.set()
        self._thread.join()


def _peak_of_rusage() -> int | None:
    """The peak that POSIX knows: bytes on macOS, kilobytes elsewhere. Windows has no such call."""
    try:
        import resource  # noqa: PLC0415 - not on Windows
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
