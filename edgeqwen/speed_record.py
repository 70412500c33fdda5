"""What `edgeqwen bench` measured on this machine, kept in the cache folder: it decides which engine is taken."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from edgeqwen.device import cpu_name, physical_cores
from edgeqwen.engines import ENGINES
from edgeqwen.folders import cache_folder

logger = logging.getLogger("edgeqwen")
_MAX_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Speed:
    """One engine's speed with one artifact here; it counts as long as processor, cores and version are the same."""

    cpu: str
    version: str
    threads: int
    decode_tokens_per_s: float


def keep_speeds(digest: str, speeds: Mapping[str, Speed]) -> Path | None:
    """Add engines' speeds to what is known of the artifact with this manifest; None where that cannot be written."""
    path = _path(digest)
    data = {name: asdict(speed) for name, speed in {**_read(path), **speeds}.items()}
    temporary = path.with_suffix(".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(data, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        logger.warning("%s cannot be written (%s): the next choice of engine goes without it", path, error.strerror)
        return None
    return path


def decode_speeds(digest: str | None) -> dict[str, float]:
    """Engine -> decode tokens/s, as far as this processor, its cores and the installed version were measured."""
    if digest is None:
        return {}
    found = _read(_path(digest))
    cpu, cores = cpu_name(), physical_cores()
    return {
        name: speed.decode_tokens_per_s
        for name, speed in found.items()
        if name in ENGINES and (speed.cpu, speed.version, speed.threads) == (cpu, ENGINES[name].version, cores)
    }


def _path(digest: str) -> Path:
    return cache_folder() / "speeds" / f"{digest[:32]}.json"


def _read(path: Path) -> dict[str, Speed]:
    """What is there; a file that is damaged is as good as none."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8")[:_MAX_BYTES])
        found = {name: Speed(**entry) for name, entry in entries.items()}
        return {name: speed for name, speed in found.items() if speed.decode_tokens_per_s > 0}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return {}
