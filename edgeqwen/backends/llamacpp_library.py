"""Brings llama.cpp's libraries into this process: finds them, refuses what this processor cannot run, keeps the log."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgeqwen import device
from edgeqwen.elf import elf_machine
from edgeqwen.errors import EngineMissingError
from edgeqwen.native_engine import BUILD_LINE, OVERRIDE, cut_short, library_folder, library_name

PIP_LINE = "pip install 'edgeqwen[llama]'"
# ggml_cpu_has_NAME() is a constant of the build, and what the kernel calls that (ggml-cpu.c, /proc/cpuinfo).
BUILT_FOR = {
    "avx": ("avx",), "avx2": ("avx2",), "f16c": ("f16c",), "fma": ("fma",), "bmi2": ("bmi2",),
    "avx_vnni": ("avx_vnni",), "avx512": ("avx512f", "avx512cd", "avx512vl", "avx512dq", "avx512bw"),
    "avx512_vbmi": ("avx512vbmi",), "avx512_vnni": ("avx512_vnni",), "avx512_bf16": ("avx512_bf16",),
    "amx_int8": ("amx_int8",), "dotprod": ("asimddp",), "fp16_va": ("asimdhp",), "matmul_int8": ("i8mm",),
    "sve": ("sve",), "sme": ("sme",),
}  # fmt: skip


def load_llama() -> Any:
    """The module llama_cpp.llama_cpp with its libraries; EngineMissingError says why there is none."""
    folder = library_folder()
    if folder is not None:
        _refuse_foreign(folder)
    try:
        with _named(folder):
            import llama_cpp.llama_cpp as llama  # noqa: PLC0415 - an engine is imported when it is used
    except ImportError as error:
        raise EngineMissingError(f"llama.cpp is not installed: {PIP_LINE}") from error
    except (OSError, RuntimeError) as error:  # the package is there, its library does not load
        if folder is None:
            raise EngineMissingError(
                f"llama_cpp is installed without libraries: install an engine wheel ({BUILD_LINE}) or {PIP_LINE}"
            ) from error
        raise EngineMissingError(f"llama.cpp's library does not load ({error}); reinstall it: {PIP_LINE}") from error
    return llama


@contextmanager
def _named(folder: Path | None) -> Iterator[None]:
    """Tell llama_cpp where to look while it is imported; the environment is as before afterwards."""
    before = os.environ.get(OVERRIDE)
    if folder is not None:
        os.environ[OVERRIDE] = str(folder)
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(OVERRIDE, None)


def _refuse_foreign(folder: Path) -> None:
    """EngineMissingError where the processor cannot run a library, before anything is computed with it.

    An engine wheel is checked by its description; this is for a folder of another origin and for what pip compiled,
    which may have been copied here with the disk.
    """
    library = folder / library_name("llama")
    if not library.is_file():
        raise EngineMissingError(f"{library} is missing; {_again()}")
    built, here = elf_machine(library), platform.machine()
    if sys.platform == "linux" and built != here:
        raise EngineMissingError(f"{library} is built for {built or 'another system'}, and this is {here}: {PIP_LINE}")
    if (damaged := cut_short(folder)) is not None:
        raise EngineMissingError(f"{damaged} is cut short; {_again()}")
    single, flags = folder / library_name("ggml-cpu"), device.cpu_flags()
    if flags is None or not single.is_file():
        return
    if lacking := sorted(_asked_of_the_processor(single) - flags):
        raise EngineMissingError(
            f"{single} is built for another processor: it needs {' '.join(lacking)}, which {device.cpu_name()} lacks: "
            f"pip install --force-reinstall --no-cache-dir llama-cpp-python, or an engine wheel ({BUILD_LINE})"
        )


def _again() -> str:
    """What brings a whole library where the one that is looked for is not."""
    if os.environ.get(OVERRIDE):
        return f"{OVERRIDE} names its folder: unset {OVERRIDE}"
    return f"reinstall it: {PIP_LINE} --force-reinstall --no-cache-dir"


def _asked_of_the_processor(library: Path) -> set[str]:
    """The kernel's words for what a CPU library is compiled for; it says so in constants, nothing is computed."""
    try:
        native = ctypes.CDLL(str(library))
    except OSError as error:
        raise EngineMissingError(f"llama.cpp's library does not load ({error}); reinstall it: {PIP_LINE}") from error
    asked = (words for name, words in BUILT_FOR.items() if getattr(native, f"ggml_cpu_has_{name}", lambda: 0)())
    return {word for words in asked for word in words}


class Log:
    """llama.cpp's log: kept, not printed; its last warnings explain a failure."""

    def __init__(self) -> None:
        self.lines: deque[str] = deque(maxlen=4)
        self.callback: Any = None

    def attach(self, llama: Any) -> None:
        """Take the log and start the backend, once a process."""
        if self.callback is None:
            self.callback = llama.llama_log_callback(self._receive)
            llama.llama_log_set(self.callback, ctypes.c_void_p(0))
            _load_variants(Path(llama._base_path))  # noqa: SLF001 - the folder that it loaded from
            llama.llama_backend_init()

    def _receive(self, level: int, text: bytes, _user_data: object) -> None:
        if level in (3, 4):  # GGML_LOG_LEVEL_WARN, GGML_LOG_LEVEL_ERROR
            self.lines.append(" ".join(text.decode("utf-8", "replace").split()))

    def last_words(self) -> str:
        """What it warned of last."""
        return "; ".join(line for line in self.lines if line) or "it gave no reason"


def _load_variants(folder: Path) -> None:
    """Of CPU libraries side by side let ggml load the best that runs here; llama_cpp does not do so by itself."""
    if (folder / library_name("ggml-cpu")).is_file():
        return
    ggml = ctypes.CDLL(str(folder / library_name("ggml")))
    ggml.ggml_backend_load_all_from_path.argtypes = (ctypes.c_char_p,)
    ggml.ggml_backend_load_all_from_path.restype = None
    ggml.ggml_backend_load_all_from_path(os.fsencode(folder))
    ggml.ggml_backend_dev_count.restype = ctypes.c_size_t
    if not ggml.ggml_backend_dev_count():
        raise EngineMissingError(
            f"no CPU library in {folder} runs on this processor ({device.cpu_name()}): {BUILD_LINE} makes one that does"
        )
