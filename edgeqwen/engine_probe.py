"""Whether an installed engine really runs here: tried on nano in a process of its own, which it may take with it.

What pip compiled, or kept in its cache, for another processor shows only when it runs: by an illegal instruction.
"""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from edgeqwen.backends.llamacpp_library import load_llama
from edgeqwen.catalog import convert
from edgeqwen.engines import ENGINES
from edgeqwen.errors import EdgeqwenError
from edgeqwen.model import load

SECONDS = 120  # a Raspberry Pi that reads everything from its card takes some of them
WORDS_CHARS = 300


@dataclass(frozen=True, slots=True)
class Fault:
    """Why an engine does not run; `wrong_processor` where an instruction was not there."""

    text: str
    wrong_processor: bool = False


def engine_fault(name: str, *, seconds: float = SECONDS) -> Fault | None:
    """Load an engine in a process and let it compute; None where it does."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with TemporaryDirectory(prefix="edgeqwen-") as folder:
        words = [sys.executable, "-P", "-X", "utf8", "-m", "edgeqwen.engine_probe", name, folder]
        try:
            tried = subprocess.run(
                words, stdin=subprocess.DEVNULL, capture_output=True, env=environment, timeout=seconds, check=False
            )
        except subprocess.TimeoutExpired:
            return Fault(f"it did not answer within {seconds:.0f} s")
    if tried.returncode == 0:
        return None
    lines = tried.stderr.decode("utf-8", "replace").strip().splitlines()
    said = lines[-1][:WORDS_CHARS] if lines else "it said nothing"
    if tried.returncode > 0:
        return Fault(said, wrong_processor="built for another processor" in said)  # load_llama's words
    if -tried.returncode == signal.SIGILL:
        return Fault("it was built for another processor: it died of an illegal instruction", wrong_processor=True)
    return Fault(f"it died of {signal.Signals(-tried.returncode).name}: {said}")


def main() -> None:
    """Import ONNX Runtime, which looks at the processor by itself; let llama.cpp, which does not, answer with nano."""
    name, folder = sys.argv[1:]
    if ENGINES[name].format != "gguf":
        importlib.import_module(ENGINES[name].module)
    else:
        load_llama()
        artifact = convert("nano", Path(folder) / "nano", type="q4_k_m")
        with load(artifact.path, engine=name, context_length=128) as model:
            model.chat("Hello", thinking=False, max_tokens=2, seed=0)


if __name__ == "__main__":
    try:
        main()
    except (EdgeqwenError, ImportError, OSError) as failure:
        sys.exit(f"{type(failure).__name__}: {failure}")
