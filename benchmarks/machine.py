"""What a result was measured on: the machine and the versions; it measures nothing itself."""

from __future__ import annotations

import os
import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("edgeqwen", "llama-cpp-python", "numpy", "onnxruntime", "tokenizers")


def machine() -> dict[str, object]:
    """Processor, cores, memory, system and versions, as plain data."""
    cpuinfo, meminfo = (Path(f"/proc/{name}") for name in ("cpuinfo", "meminfo"))
    model = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text(encoding="utf-8")) if cpuinfo.exists() else None
    total = re.search(r"MemTotal:\s*(\d+)", meminfo.read_text(encoding="utf-8")) if meminfo.exists() else None
    return {
        "cpu": model.group(1) if model else platform.processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(int(total.group(1)) / (1 << 20), 1) if total else None,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
