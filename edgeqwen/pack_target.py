"""The machines that a pack can be made for, and the wheels that fit there; it downloads nothing."""

from __future__ import annotations

import platform
import re
from dataclasses import dataclass

from edgeqwen.errors import RequestError

MACHINES = ("x86_64", "aarch64")
GLIBC_LEAST = 28  # 2.28, of the wheels of numpy and onnxruntime; a Raspberry Pi OS 12 has 2.36
_OLDEST = {"x86_64": 5, "aarch64": 17}  # the first manylinux of each
_LEGACY = {"x86_64": ("manylinux2014", "manylinux2010", "manylinux1"), "aarch64": ("manylinux2014",)}
_BITS_32 = re.compile(r"armhf|armel|arm|armv[67]l?|i[3-6]86|x86|win32|arm32|32bit")
PYTHON_LEAST, PYTHON_MOST = 11, 19  # of 3.x


@dataclass(frozen=True, slots=True)
class Target:
    """64-bit Linux with glibc on one kind of processor, and the Pythons that may be there: "3.11"."""

    machine: str  # platform.machine()
    pythons: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"linux-{self.machine}"

    @property
    def tags(self) -> tuple[str, ...]:
        """The platform tags of wheels that run there, the newest first."""
        numbers = range(GLIBC_LEAST, _OLDEST[self.machine] - 1, -1)
        return (*(f"manylinux_2_{n}_{self.machine}" for n in numbers), *(
            f"{name}_{self.machine}" for name in _LEGACY[self.machine]
        ))  # fmt: skip

    def markers(self, python: str) -> dict[str, str]:
        """What the markers of requirements see there (PEP 508)."""
        return {
            "implementation_name": "cpython", "implementation_version": f"{python}.0", "os_name": "posix",
            "platform_machine": self.machine, "platform_python_implementation": "CPython", "platform_release": "",
            "platform_system": "Linux", "platform_version": "", "python_full_version": f"{python}.0",
            "python_version": python, "sys_platform": "linux",
        }  # fmt: skip


def target_of(name: str, pythons: str) -> Target:
    """`linux-aarch64` or `this`, and `3.11,3.13`; RequestError says what there is, and why 32 bits are not."""
    machine = platform.machine() if name == "this" else name.removeprefix("linux-")
    if _BITS_32.fullmatch(machine.lower()):
        raise RequestError(
            f"{name} is a 32-bit system: neither llama.cpp's engine nor onnxruntime is built for one; "
            "install the 64-bit system there and pack for linux-aarch64 or linux-x86_64"
        )
    if machine not in MACHINES:
        raise RequestError(f"{name!r} cannot be packed for; there are {', '.join(f'linux-{m}' for m in MACHINES)}")
    versions = tuple(dict.fromkeys(part.strip() for part in pythons.replace("\N{FULLWIDTH COMMA}", ",").split(",")))
    for version in versions:
        major, _, minor = version.partition(".")
        if major != "3" or not (minor.isdecimal() and PYTHON_LEAST <= int(minor) <= PYTHON_MOST):
            raise RequestError(
                f"Python {version!r} cannot be packed for: there are 3.{PYTHON_LEAST} to 3.{PYTHON_MOST}; name some, "
                "as 3.11,3.13"
            )
    return Target(machine, versions)
