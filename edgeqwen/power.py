"""Heat, power supply and clock of this machine, as its kernel tells them; it judges nothing and writes nothing."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

SYSFS = Path("/sys")
# Bits of `vcgencmd get_throttled` and of the file that the Raspberry Pi's kernel has for it; 16 bits higher stands
# whether the same has happened since the start (raspberrypi.com, documentation of vcgencmd).
BITS = {0: "under-voltage", 1: "capped frequency", 2: "throttled", 3: "soft temperature limit"}
PAST = 16
VCGENCMD_S = 2


@dataclass(frozen=True, slots=True)
class Power:
    """One reading; None and empty where the machine does not say."""

    temperature_c: float | None = None  # of the hottest zone
    frequency_hz: int | None = None  # of the slowest core that is on
    frequency_max_hz: int | None = None  # of the same core
    slowed: tuple[str, ...] = ()  # what holds it back now, in the words of BITS
    was_slowed: tuple[str, ...] = ()  # what did at any time since the start
    slowings: int | None = None  # how often heat held a core back since the start: x86's own counter

    def since(self, before: Power | None) -> tuple[str, ...]:
        """What held the machine back now, or between an earlier reading and this one."""
        if before is None:
            return self.slowed
        new = [name for name in self.was_slowed if name not in before.was_slowed]
        found = [*self.slowed, *new]
        if self.slowings is not None and before.slowings is not None and self.slowings > before.slowings:
            found.append("throttled")
        return tuple(dict.fromkeys(found))


NOT_READ = Power()


def read_power(sysfs: Path | None = None) -> Power:
    """Read them now: a few small files, below 1 ms."""
    root = SYSFS if sysfs is None else sysfs
    flags = _throttled(root)
    now = [name for bit, name in BITS.items() if flags >> bit & 1]
    past = [name for bit, name in BITS.items() if flags >> (bit + PAST) & 1]
    if "under-voltage" not in now and any(_numbers(root, "class/hwmon/hwmon*/in0_lcrit_alarm")):
        now.insert(0, "under-voltage")  # the driver rpi_volt of kernels that lack the file
    cores = [
        (clock, most)
        for folder in root.glob("devices/system/cpu/cpu[0-9]*/cpufreq")
        if (clock := _number(folder / "scaling_cur_freq")) is not None
        and (most := _number(folder / "cpuinfo_max_freq")) is not None
    ]  # kHz
    clock, most = min(cores, key=lambda core: core[0] / max(1, core[1]), default=(None, None))
    temperatures = [t / 1000 for t in _numbers(root, "class/thermal/thermal_zone*/temp") if 0 < t < 200_000]
    counts = _numbers(root, "devices/system/cpu/cpu[0-9]*/thermal_throttle/core_throttle_count")
    return Power(
        max(temperatures, default=None),
        None if clock is None else clock * 1000,
        None if most is None else most * 1000,
        tuple(now),
        tuple(past),
        sum(counts) if counts else None,
    )


def _throttled(root: Path) -> int:
    """The flags of a Raspberry Pi; 0 on other machines."""
    for path in root.glob("devices/platform/soc*/soc*firmware/get_throttled"):
        if (flags := _number(path, 16)) is not None:
            return flags
    if root != SYSFS or shutil.which("vcgencmd") is None:
        return 0
    try:
        asked = subprocess.run(
            ["vcgencmd", "get_throttled"], capture_output=True, text=True, timeout=VCGENCMD_S, check=False
        )
        return int(asked.stdout.strip().removeprefix("throttled="), 16)
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return 0


def _numbers(root: Path, pattern: str) -> list[int]:
    return [number for path in root.glob(pattern) if (number := _number(path)) is not None]


def _number(path: Path, base: int = 10) -> int | None:
    """The number in a small file of the kernel; None where there is none."""
    try:
        with path.open("rb") as file:
            return int(file.read(64), base)
    except (OSError, ValueError):
        return None
