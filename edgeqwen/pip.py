"""Runs this Python's pip, which knows mirrors and proxies; it installs nothing by itself."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence

from edgeqwen.errors import DownloadError

Pip = Callable[[Sequence[str]], str]  # arguments -> stdout
WORDS_CHARS = 600


def run_pip(arguments: Sequence[str]) -> str:
    """Run this Python's pip; DownloadError with its last words."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", check=False)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        words = " ".join(" ".join(errors).split())[:WORDS_CHARS]
        raise DownloadError(f"pip failed: {words or 'it gave no reason (is pip installed?)'}")
    return done.stdout
