"""Converts in forked children that are killed, and tells what was found afterwards.

Arguments: CHECKPOINT FOLDER MODE FORMAT, with the mode "moments" (random ones) or "calls" (around each that changes the
disk) and the format "gguf" or "onnx".
One JSON line is printed: for each trial "old", "new", or what is wrong. It is a program of its own because a process
with threads, such as a test run, must not fork.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from converters.build import convert_checkpoint
from converters.checkpoint import open_checkpoint
from edgeqwen.artifact import is_artifact, open_artifact
from edgeqwen.errors import ArtifactError

TYPES = ("q8_0", "q4_0")
TRIALS = 50


def convert(checkpoint: Path, out: Path, kind: str) -> None:
    with open_checkpoint(checkpoint) as opened:
        convert_checkpoint(opened, out, type=kind, formats=(sys.argv[4],), threads=2, compare=False)


class Deadly:
    """Replaces a function of os: counts its calls, and kills the process before or after the n-th."""

    count = 0

    def __init__(self, name: str, fatal: int | None, when: str) -> None:
        self.real, self.fatal, self.when = getattr(os, name), fatal, when
        setattr(os, name, self)

    def __call__(self, *arguments: object) -> object:
        number = Deadly.count
        Deadly.count += 1
        if number == self.fatal and self.when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = self.real(*arguments)
        if number == self.fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        return result


def in_child(work: object, kill_after_s: float | None = None) -> int:
    """Run `work` in a fork and give its wait status."""
    child = os.fork()
    if child == 0:
        work()
        os._exit(0)
    if kill_after_s is not None:
        time.sleep(kill_after_s)
        os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


def count_calls(checkpoint: Path, out: Path, kind: str) -> int:
    """How often a conversion calls what is counted, told through the exit status."""

    def work() -> None:
        for name in ("fsync", "replace", "unlink"):
            Deadly(name, None, "before")
        convert(checkpoint, out, kind)
        os._exit(Deadly.count)

    return os.waitstatus_to_exitcode(in_child(work))


def look(out: Path, known: dict[bytes, str], old: str | None) -> tuple[str, str | None]:
    """What a trial left: ("old" | "new" | a complaint), and the type that is there."""
    if not is_artifact(out):
        return ("old" if old is None else "the old artifact is gone"), None
    try:
        open_artifact(out, verify="full")
    except ArtifactError as error:
        return str(error), old
    found = known.get((out / "manifest.json").read_bytes())
    if found is None:
        return "neither artifact", old
    return ("old" if found == old else "new"), found


def main() -> None:
    checkpoint, folder, mode = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    known, spent = {}, 0.0
    for kind in TYPES:
        began = time.monotonic()
        convert(checkpoint, folder / kind, kind)
        spent = time.monotonic() - began
        known[(folder / kind / "manifest.json").read_bytes()] = kind
    out, old, results = folder / "out", None, []
    if mode == "moments":
        rng, longest = random.Random(20), spent * 1.3
        for _ in range(TRIALS):
            new = TYPES[0] if old == TYPES[1] else TYPES[1]
            in_child(lambda kind=new: convert(checkpoint, out, kind), rng.uniform(0, longest))
            result, old = look(out, known, old)
            results.append(result)
            longest *= 1.25 if result == "old" else 0.8  # about the switch, however fast the machine is just now
    else:
        convert(checkpoint, out, TYPES[0])
        for number in range(count_calls(checkpoint, out, TYPES[1])):
            for when in ("before", "after"):
                convert(checkpoint, out, TYPES[0])  # over what the last trial left

                def work(number: int = number, when: str = when) -> None:
                    for name in ("fsync", "replace", "unlink"):
                        Deadly(name, number, when)
                    convert(checkpoint, out, TYPES[1])

                status = in_child(work)
                result, _ = look(out, known, TYPES[0])
                results.append(result if os.WIFSIGNALED(status) else f"call {number} was not reached")
    convert(checkpoint, out, TYPES[0])
    left = {path.name for path in out.iterdir()} - {
        "manifest.json",
        "measured.json",
        *open_artifact(out).manifest.files,
    }
    sys.stdout.write(json.dumps({"results": results, "left": sorted(left)}))


if __name__ == "__main__":
    main()
