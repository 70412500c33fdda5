"""What this machine has and lacks for running models: a list of small checks, each with the line that mends it.

No engine is loaded and nothing is changed. To add a check: a function that returns a Check, and its line in CHECKS.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import Literal

from edgeqwen import device
from edgeqwen.choice import choose
from edgeqwen.engines import ENGINES, Engine, installed_engines
from edgeqwen.errors import EdgeqwenError
from edgeqwen.folders import cache_folder
from edgeqwen.native_engine import BUILD_LINE, library_folder, library_name
from edgeqwen.outline import outline
from edgeqwen.plan import Plan, choose_engines

GIB, MIB = 1 << 30, 1 << 20
MEMORY_LOW = GIB  # Qwen3-0.6B in int4 with 4,096 tokens of context takes about that
DISK_LOW = 2 * GIB  # Qwen3-0.6B's checkpoint has 1.5 GB, its int4 0.4 GB
COMPILERS = ("c++", "g++", "clang++", "cl")
Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at. `mend` is the one line that helps, empty where all is well."""

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


def diagnose(path: Path | None = None) -> Diagnosis:
    """Check this machine, and what `catalog.locate` found if that is given. It raises nothing: a probe may not know."""
    checks = [_run(name, probe) for name, probe in CHECKS.items()]
    checks += [_run(engine.name, partial(check_engine, engine)) for engine in ENGINES.values()]
    able = all(check.status != "fail" for check in checks if check.name == "system")
    if path is None:
        choice = _run("choice", check_choice)
        return Diagnosis((*checks, choice), able and choice.status != "fail")
    model, plan = check_model(path)
    return Diagnosis((*checks, *model), able and plan is not None, plan)


def _run(name: str, probe: Callable[[], Check]) -> Check:
    try:
        return probe()
    except Exception as error:  # noqa: BLE001 - a probe that fails must not hide what the others found
        return Check(name, "warn", f"unknown ({type(error).__name__}: {error})")


def check_system() -> Check:
    """The operating system; 32-bit ones have no engine."""
    machine = platform.machine()
    libc = device.libc_name()
    found = f"{device.system_name()}; {machine}" + (f"; {libc}" if libc else "")
    if machine in device.BITS_32 or sys.maxsize < 1 << 32:
        return Check("system", "fail", f"{found}: 32-bit", "install the 64-bit system: no engine is built for this one")
    return Check("system", "ok", found)


def check_python() -> Check:
    """The Python that runs this, so that a pip line goes to the right one."""
    return Check("python", "ok", f"{platform.python_version()} at {sys.executable}")


def check_processor() -> Check:
    """Cores, and the instruction sets without which integers are multiplied slowly."""
    cores, board, features = device.physical_cores(), device.board_name(), device.cpu_features()
    name = f"{board}, {device.cpu_name()}" if board else device.cpu_name()
    listed = "instruction sets unknown" if features is None else " ".join(features) or "none of the fast ones"
    found = f"{name}; {cores} fast core{'s' * (cores > 1)}; {listed}"
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


def check_cache() -> Check:
    """The folder that models are converted into."""
    folder = cache_folder()
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = device.disk_free_bytes(folder)
    found = f"{folder}, {free / 1e9:.1f} GB free"
    mend = "name another folder: EDGEQWEN_HOME=/path/with/room"
    if not there.is_dir() or not os.access(there, os.W_OK):
        return Check("cache", "warn", f"{found}, not writable", mend)
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
    if engine.name == "llamacpp":
        try:
            there = _has_library()
        except EdgeqwenError as error:  # its last words say what would work
            return Check(engine.name, "warn", f"{found}; {error}", str(error).rpartition(": ")[2])
        if not there:
            mend = f"install an engine wheel ({BUILD_LINE}) or {engine.pip_line} --force-reinstall"
            return Check(engine.name, "warn", f"{found}; its library is missing", mend)
    return Check(engine.name, "ok", found)


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


def check_choice() -> Check:
    """Which engine runs which format here, and which one where a model has both."""
    installed = installed_engines()
    if not installed:
        lines = ", or ".join(engine.pip_line for engine in ENGINES.values())
        return Check("choice", "fail", "no engine is installed", lines)
    found = [f"{ENGINES[name].format} runs on {name}" for name in installed]
    if len(installed) > 1:
        best = choose_engines([ENGINES[name].format for name in installed], installed)[0]
        found.append(f"a model that has both on {best.engine} ({best.reason.removeprefix(best.engine + ': ')})")
    return Check("choice", "ok", "; ".join(found))


def check_model(path: Path) -> tuple[list[Check], Plan | None]:
    """What is wrong with a model, or how it would run here."""
    try:
        model = outline(path)
    except EdgeqwenError as error:
        return [Check("model", "fail", str(error), "convert it again, or copy it again")], None
    sizes = (f"{kind} {model.types[kind]}, {w.total_bytes / 1e6:.0f} MB" for kind, w in model.weights.items())
    checks = [Check("model", "ok", f"{model.name}: {'; '.join(sizes)}")]
    try:
        plan = choose(model)
    except EdgeqwenError as error:
        return [*checks, _refused(str(error))], None
    return [*checks, Check("choice", "ok", "; ".join(plan.reasons)), Check("fits", "ok", _need(plan))], plan


def _refused(text: str) -> Check:
    """An error whose words behind the last colon say what would work."""
    found, _, mend = text.rpartition(": ")
    return Check("choice", "fail", found or text, mend)


def _need(plan: Plan) -> str:
    need = plan.need
    return (
        f"{need.total_bytes // MIB} MiB for {plan.context_length} tokens of context: weights "
        f"{(need.weights_bytes + need.repacked_bytes) // MIB}, KV cache {need.kv_bytes // MIB} ({plan.kv_type}), "
        f"the rest {(need.compute_bytes + need.process_bytes) // MIB}"
    )


# In the order in which they are shown; the engines' and the model's follow.
CHECKS: dict[str, Callable[[], Check]] = {
    "system": check_system,
    "python": check_python,
    "processor": check_processor,
    "memory": check_memory,
    "cache": check_cache,
}
