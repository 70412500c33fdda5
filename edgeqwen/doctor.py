"""What this machine has and lacks for running models: a list of small checks, each with the line that mends it.

Nothing is changed, and an engine is tried in a process of its own. To add a check: a function that returns a Check, and
its line in CHECKS.
"""

from __future__ import annotations

import os
import platform
import shutil
import socket
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import Literal

from edgeqwen import device
from edgeqwen.artifact import is_artifact, mending, open_artifact
from edgeqwen.catalog import find
from edgeqwen.choice import choose
from edgeqwen.engine_probe import engine_fault
from edgeqwen.engines import ENGINES, Engine, installed_engines
from edgeqwen.errors import EdgeqwenError
from edgeqwen.folders import cache_folder
from edgeqwen.model import recommended
from edgeqwen.native_engine import BUILD_LINE, OVERRIDE, library_folder, library_name
from edgeqwen.onnx_runtime import NEEDED, UPGRADE_LINE, is_too_old
from edgeqwen.outline import outline
from edgeqwen.plan import Plan, choose_engines
from edgeqwen.power import read_power

GIB, MIB = 1 << 30, 1 << 20
MEMORY_LOW = GIB  # Qwen3-0.6B in int4 with 4,096 tokens of context takes about that
DISK_LOW = 2 * GIB  # Qwen3-0.6B's checkpoint has 1.5 GB, its int4 0.4 GB
GLIBC_LEAST = (2, 28)  # of the wheels of numpy and onnxruntime: manylinux_2_28
PORT = 8000  # of `edgeqwen serve`
SUPPLY = "use the board's own power supply (a Pi 5: 5 V and 5 A, a Pi 4: 5 V and 3 A) and a short cable"
COOLING = "cool it (a fan, a heat sink, air around it), or give --threads 2"
UNSET = f"unset {OVERRIDE}, which names the folder of its libraries"
COMPILERS = ("c++", "g++", "clang++", "cl")
_VIRTUAL = ("/proc", "/sys")  # which say that they can be written
Status = Literal["ok", "warn", "fail"]
Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at. `mend` is the one line that helps, empty where all is well or `found` says it."""

    name: str
    status: Status
    found: str
    mend: str = ""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """All checks, and whether anything (the model that was named) can run here; `plan` is how it would."""

    checks: tuple[Check, ...]
    can_run: bool
    plan: Plan | None = None

    def wrong(self, *, strict: bool = False) -> bool:
        """Whether something has to be mended: what fails, and if `strict` what only warns."""
        return not self.can_run or any(check.status == "fail" or (strict and check.mend) for check in self.checks)


def diagnose(path: Path | None = None, *, port: int = PORT, quick: bool = False, tell: Tell | None = None) -> Diagnosis:
    """Check this machine, and what `catalog.locate` found if that is given. It raises nothing: a probe may not know.

    `quick` leaves out what takes a second or more: trying the engines, and hashing the model. `tell` hears of those.
    """
    tell = tell or (lambda _: None)
    checks = [_run(name, probe) for name, probe in CHECKS.items()]
    checks.append(_run("port", partial(check_port, port)))
    for engine in ENGINES.values():
        check = _run(engine.name, partial(check_engine, engine))
        if check.status == "ok" and not quick:
            tell(f"trying {engine.name}")
            check = _run(engine.name, partial(try_engine, engine, check))
        checks.append(check)
    able = all(check.status != "fail" for check in checks if check.name == "system")
    broken = {check.name for check in checks if check.status == "fail"}
    if path is None:
        choice = _run("choice", partial(check_choice, broken))
        return Diagnosis((*checks, choice), able and choice.status != "fail")
    if not quick:
        tell(f"checking every byte of {path}")
    model, plan = check_model(path, verify="quick" if quick else "full")
    return Diagnosis((*checks, *model), able and plan is not None and plan.engine not in broken, plan)


def _run(name: str, probe: Callable[[], Check]) -> Check:
    try:
        return probe()
    except Exception as error:  # noqa: BLE001 - a probe that fails must not hide what the others found
        return Check(name, "warn", f"unknown ({type(error).__name__}: {error})")


def check_system() -> Check:
    """The operating system; 32-bit ones have no engine, and old ones no wheels."""
    machine = platform.machine()
    libc = device.libc_name()
    found = f"{device.system_name()}; {machine}" + (f"; {libc}" if libc else "")
    if machine in device.BITS_32 or sys.maxsize < 1 << 32:
        return Check("system", "fail", f"{found}: 32-bit", "install the 64-bit system: no engine is built for this one")
    return _check_libc(libc or "", found)


def _check_libc(libc: str, found: str) -> Check:
    """Wheels of numpy and onnxruntime need a C library that is not too old."""
    needed = ".".join(map(str, GLIBC_LEAST))
    mend = f"install a system with glibc {needed} or later (Debian 12, Raspberry Pi OS 12, Ubuntu 22.04)"
    if libc.startswith("musl"):
        return Check("system", "warn", f"{found}: onnxruntime has no wheels for musl", mend)
    name, _, version = libc.partition(" ")
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())
    if name == "glibc" and numbers and numbers < GLIBC_LEAST:
        return Check("system", "fail", f"{found}: wheels need glibc {needed}", mend)
    return Check("system", "ok", found)


def check_python() -> Check:
    """The Python that runs this, so that a pip line goes to the right one."""
    return Check("python", "ok", f"{platform.python_version()} at {sys.executable}")


def check_processor() -> Check:
    """Cores, and the instruction sets without which integers are multiplied slowly."""
    cores, board, features = device.physical_cores(), device.board_name(), device.cpu_features()
    name = f"{board}, {device.cpu_name()}" if board else device.cpu_name()
    listed = "instruction sets unknown" if features is None else " ".join(features) or "none of the fast ones"
    found = f"{name}; {device.counted(cores, 'fast core')}; {listed}"
    arm = platform.machine().lower() in {"aarch64", "arm64"}
    wanted = "dotprod" if arm else "avx2"
    if features is not None and wanted not in features:
        return Check(
            "processor", "warn", f"{found}; no {wanted}", "expect int8 and int4 to be slow: take a small model"
        )
    return Check("processor", "ok", found)


def check_memory() -> Check:
    """What can be used without swapping, within the cgroup's limit."""
    total, left = device.memory_total_bytes(), device.memory_available_bytes()
    if left is None:
        return Check("memory", "ok", "unknown: whether a model fits shows when it is loaded")
    found = f"{left / GIB:.1f} GiB available" + (f" of {total / GIB:.1f} GiB" if total else "")
    limit = device.cgroup_left_bytes()
    if limit is not None and limit <= left:
        found += ", by the limit of its cgroup"
    if left < MEMORY_LOW:
        return Check("memory", "warn", found, "close other programs, or give --context 1024 to run")
    return Check("memory", "ok", found)


def check_power() -> Check:
    """Supply, heat and clock: what holds the machine back now, and what did since it was started."""
    power = read_power()
    parts = [f"{power.temperature_c:.0f} °C"] if power.temperature_c is not None else []
    if power.frequency_hz is not None and power.frequency_max_hz is not None:
        parts.append(f"{power.frequency_hz / 1e6:.0f} of {power.frequency_max_hz / 1e6:.0f} MHz")
    found = ", ".join(parts) or "the system says nothing of heat and clock"
    names = power.slowed or power.was_slowed
    if not names:
        return Check("power", "ok", found)
    mend = SUPPLY if "under-voltage" in names else COOLING
    if power.slowed:
        return Check("power", "fail", f"{found}; held back now: {', '.join(names)}", mend)
    return Check("power", "warn", f"{found}; held back since the start: {', '.join(names)}", mend)


def check_port(port: int) -> Check:
    """Whether `edgeqwen serve` can listen there."""
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError as error:
        with socket.create_server(("127.0.0.1", 0)) as free:
            other = free.getsockname()[1]
        found = f"127.0.0.1:{port} cannot be listened on ({error.strerror})"
        return Check("port", "warn", found, f"edgeqwen serve MODEL --port {other}")
    return Check("port", "ok", f"127.0.0.1:{port} is free")


def check_cache() -> Check:
    """The folder that models are converted into."""
    folder = cache_folder()
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = device.disk_free_bytes(folder)
    found = f"{folder}, {free / 1e9:.1f} GB free"
    mend = "name another folder: EDGEQWEN_HOME=/path/with/room"
    if not there.is_dir() or not os.access(there, os.W_OK) or str(there) in _VIRTUAL:
        return Check("cache", "warn", f"{folder} cannot be written", mend)
    return Check("cache", "warn", found, mend) if free < DISK_LOW else Check("cache", "ok", found)


def check_engine(engine: Engine) -> Check:
    """Whether an engine is installed, in the version that this edgeqwen was made for."""
    if not engine.installed:
        lacks_compiler = engine.compiled and not any(map(shutil.which, COMPILERS))
        found = "not installed" + ", and there is no C++ compiler to build it" * lacks_compiler
        return Check(engine.name, "warn", f"{found}; it reads {engine.format}", engine.pip_line)
    found = f"{engine.distribution} {engine.version or '(unknown version)'}, reads {engine.format}"
    pinned = pinned_version(engine.distribution)
    if pinned is not None and engine.version not in (None, pinned):
        return Check(engine.name, "warn", f"{found}; this edgeqwen was made for {pinned}", engine.pip_line)
    if engine.name == "ort" and engine.version is not None and is_too_old(engine.version):
        return Check(engine.name, "fail", f"{found}; {NEEDED}", UPGRADE_LINE)
    if engine.name == "llamacpp":
        try:
            there = _has_library()
        except EdgeqwenError as error:  # its last words say what would work
            return Check(engine.name, "fail", f"{found}; {error}", str(error).rpartition(": ")[2])
        if not there:
            again = f"install an engine wheel ({BUILD_LINE}) or {engine.pip_line} --force-reinstall"
            mend = UNSET if os.environ.get(OVERRIDE) else again
            return Check(engine.name, "fail", f"{found}; its library is missing", mend)
    return Check(engine.name, "ok", found)


def try_engine(engine: Engine, check: Check) -> Check:
    """Let an engine run in a process of its own; `check` is what is known of it without that."""
    fault = engine_fault(engine.name)
    if fault is None:
        return check
    if engine.format == "gguf" and os.environ.get(OVERRIDE):
        return Check(engine.name, "fail", f"{check.found}; {fault.text}", UNSET)
    version = pinned_version(engine.distribution)
    again = f"pip install --force-reinstall --no-cache-dir --no-deps {engine.distribution}"
    mend = f"{again}=={version}" if version else again
    if fault.wrong_processor and engine.compiled:
        mend = f"CMAKE_ARGS=-DGGML_NATIVE=OFF {mend}"
    return Check(engine.name, "fail", f"{check.found}; {fault.text}", mend)


def pinned_version(distribution: str) -> str | None:
    """The one version that our own package asks for, if it asks for one."""
    try:
        lines = requires("edgeqwen") or ()
    except PackageNotFoundError:
        return None
    wanted = (line.split(";")[0].replace(" ", "") for line in lines)
    return next((line.partition("==")[2] for line in wanted if line.startswith(f"{distribution}==")), None)


def _has_library() -> bool:
    """Whether llama.cpp's shared library lies where it is looked for; an error says why it cannot run here."""
    folder = library_folder()
    return folder is not None and (folder / library_name("llama")).is_file()


def check_choice(broken: Collection[str] = ()) -> Check:
    """Which engine runs which format here, of those that are not `broken`, and which one where a model has both."""
    installed = tuple(name for name in installed_engines() if name not in broken)
    if not installed and any(name in ENGINES for name in broken):
        return Check("choice", "fail", "no engine that is installed works", "see above")
    if not installed:
        lines = ", or ".join(engine.pip_line for engine in ENGINES.values())
        return Check("choice", "fail", "no engine is installed", lines)
    found = [f"{ENGINES[name].format} runs on {name}" for name in installed]
    if len(installed) > 1:
        best = choose_engines([ENGINES[name].format for name in installed], installed)[0]
        found.append(f"a model that has both on {best.engine} ({best.reason.removeprefix(best.engine + ': ')})")
    return Check("choice", "ok", "; ".join(found))


def check_model(path: Path, *, verify: Literal["quick", "full"] = "full") -> tuple[list[Check], Plan | None]:
    """What is wrong with a model, or how it would run here."""
    try:
        model = outline(path)
        if is_artifact(path):
            open_artifact(path, verify=verify)
    except EdgeqwenError as error:
        mend = mending(path)
        return [Check("model", "fail", str(error), mend if str(path) in mend else f"{path}: {mend}")], None
    sizes = (f"{kind} {model.types[kind]}, {w.total_bytes / 1e6:.0f} MB" for kind, w in model.weights.items())
    checks = [Check("model", "ok", f"{model.name}: {'; '.join(sizes)}")]
    try:
        plan = choose(model)
    except EdgeqwenError as error:
        return [*checks, _refused(str(error))], None
    checks += [Check("choice", "ok", "; ".join(plan.reasons)), Check("fits", "ok", _need(plan))]
    try:
        recommended(find(path, format=ENGINES[plan.engine].format).sampling)
    except EdgeqwenError as error:
        return [*checks, Check("words", "fail", str(error))], None
    return checks, plan


def _refused(text: str) -> Check:
    """An error whose words behind the last colon say what would work."""
    found, _, mend = text.rpartition(": ")
    return Check("choice", "fail", found or text, mend)


def _need(plan: Plan) -> str:
    need = plan.need
    return (
        f"{need.total_bytes // MIB} MiB for {plan.context_length} tokens of context: weights "
        f"{(need.weights_bytes + need.repacked_bytes) // MIB}, KV cache {need.kv_bytes // MIB} ({plan.kv_type}), "
        f"the rest {(need.compute_bytes + need.logits_bytes + need.process_bytes + need.library_bytes) // MIB}"
    )


# In the order in which they are shown; the engines' and the model's follow.
CHECKS: dict[str, Callable[[], Check]] = {
    "system": check_system,
    "python": check_python,
    "processor": check_processor,
    "memory": check_memory,
    "power": check_power,
    "cache": check_cache,
}
