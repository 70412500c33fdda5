"""The platforms that engines are built for, and the processors of each, as data."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass

from edgeqwen.errors import RequestError

_AVX = ("sse4_2", "avx")
_AVX2 = (*_AVX, "f16c", "fma", "avx2", "bmi2")
_AVX512 = (*_AVX2, "avx512f", "avx512cd", "avx512vl", "avx512dq", "avx512bw")
_DOT = ("asimddp", "asimdhp")


@dataclass(frozen=True, slots=True)
class Platform:
    """`variants`: ggml's name of a CPU library -> what it needs, in the order of ggml's score for it.

    They are those of ggml/src/CMakeLists.txt; what each needs is in the words of /proc/cpuinfo.
    """

    name: str
    machine: str  # platform.machine()
    compiler: str  # that builds for it elsewhere
    package: str  # of Debian, which brings that compiler
    variants: Mapping[str, tuple[str, ...]]
    newer: Mapping[str, str]  # variant -> the -march that not every compiler knows

    @property
    def native(self) -> bool:
        """Whether this machine is one."""
        return platform.machine() == self.machine


PLATFORMS = {
    one.name: one
    for one in (
        Platform(
            "linux-x86_64",
            "x86_64",
            "x86_64-linux-gnu",
            "g++-x86-64-linux-gnu",
            {
                "x64": (),
                "sse42": ("sse4_2",),
                "sandybridge": _AVX,
                "ivybridge": (*_AVX, "f16c"),
                "piledriver": (*_AVX, "f16c", "fma"),
                "haswell": _AVX2,
                "alderlake": (*_AVX2, "avx_vnni"),
                "skylakex": _AVX512,
                "cannonlake": (*_AVX512, "avx512vbmi"),
                "cascadelake": (*_AVX512, "avx512_vnni"),
                "icelake": (*_AVX512, "avx512vbmi", "avx512_vnni"),
                "cooperlake": (*_AVX512, "avx512_vnni", "avx512_bf16"),
                "zen4": (*_AVX512, "avx512vbmi", "avx512_vnni", "avx512_bf16"),
                "sapphirerapids": (*_AVX512, "avx512vbmi", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_int8"),
            },
            {},
        ),
        Platform(
            "linux-aarch64",
            "aarch64",
            "aarch64-linux-gnu",
            "g++-aarch64-linux-gnu",
            {
                "armv8.0_1": (),
                "armv8.2_1": ("asimddp",),
                "armv8.2_2": _DOT,
                "armv8.2_3": (*_DOT, "sve"),
                "armv8.6_1": (*_DOT, "sve", "i8mm"),
                "armv8.6_2": (*_DOT, "sve", "i8mm", "sve2"),
                "armv9.2_1": (*_DOT, "sve", "i8mm", "sme"),
                "armv9.2_2": (*_DOT, "sve", "i8mm", "sve2", "sme"),
            },
            {"armv9.2_1": "armv9.2-a+sme", "armv9.2_2": "armv9.2-a+sme"},
        ),
    )
}
THIS = "this"


def platform_named(name: str) -> Platform:
    """RequestError lists the platforms there are."""
    name = f"linux-{platform.machine()}" if name == THIS else name
    if name not in PLATFORMS:
        raise RequestError(f"no engine can be built for {name!r}; for {', '.join(PLATFORMS)} it can")
    return PLATFORMS[name]
