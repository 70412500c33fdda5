"""The source release that engines are built from: fetched by pip, pinned by its hash, unpacked and changed."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType

from edgeqwen.errors import DownloadError
from edgeqwen.file_hash import sha256_of
from edgeqwen.native_engine import LLAMA_VERSION
from edgeqwen.pip import run_pip

DISTRIBUTION = "llama-cpp-python"
FOLDER = f"llama_cpp_python-{LLAMA_VERSION}"
ARCHIVE = f"{FOLDER}.tar.gz"
SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
GGML = "vendor/llama.cpp/ggml/src"
# Quantizing in the lanes of AVX2: the same bytes in a fraction of the time (benchmarks/results/convert.json).
LANES = "quants_in_lanes.h"
_WEIGHTS = """\
            float sum_x2 = 0;
            for (int l = 0; l < 32; ++l) sum_x2 += x[32*j + l] * x[32*j + l];
            float av_x = sqrtf(sum_x2/32);
            for (int l = 0; l < 32; ++l) weights[l] = av_x + fabsf(x[32*j + l]);
"""


def _before(kind: str) -> tuple[str, str]:
    """The head of a quantizer, and the same with what is tried before it."""
    head = (
        f"void quantize_row_{kind}_ref(const float * GGML_RESTRICT x, block_{kind} * GGML_RESTRICT y, int64_t k) {{\n"
    )
    return head, f"{head}    if (quantized_{kind}(x, y, k)) return;\n"


# file of ggml -> what stands in it once, and what is put there
CHANGES: Mapping[str, tuple[tuple[str, str], ...]] = MappingProxyType({
    # GCC 12's amxtileintrin.h says that _tile_loadconfig reads 8 bytes of its 64: what ggml writes behind them is
    # dropped as dead, and the first use of a tile is an illegal instruction. A barrier before the call keeps it.
    "ggml-cpu/amx/mmq.cpp": (
        (
            "    _tile_loadconfig(&tc);\n",
            '    __asm__ volatile("" : : "r"(&tc) : "memory");\n    _tile_loadconfig(&tc);\n',
        ),
    ),
    "ggml-quants.c": (
        ("#define GROUP_MAX_EPS 1e-15f\n", f'#define GROUP_MAX_EPS 1e-15f\n#include "{LANES}"\n'),
        _before("q4_0"),
        _before("q8_0"),
        (
            f"{_WEIGHTS}            scales[j] = make_qkx2_quants("
            "32, 15, x + 32*j, weights, L + 32*j, &mins[j], Laux, -1.f, 0.1f, 20, false);\n",
            "            scales[j] = searched_qx_K(15, j, x, L, scales, mins);\n",
        ),
        (
            f"{_WEIGHTS}            scales[j] = make_qkx2_quants("
            "32, 31, x + 32*j, weights, L + 32*j, &mins[j], Laux, -0.5f, 0.1f, 15, false);\n",
            "            scales[j] = searched_qx_K(31, j, x, L, scales, mins);\n",
        ),
        (
            "            const float scale = make_qx_quants(16, 32, x + 16*ib, L + 16*ib, 1, NULL);\n",
            "            const float scale = searched_q6_K(ib, x, L, scales);\n",
        ),
    ),
})  # fmt: skip
MAX_BYTES, MAX_MEMBERS = 1 << 30, 50_000  # unpacked: 179 MB in 4,200 files


def fetch_source(folder: Path, archive: Path | None = None) -> Path:
    """The unpacked source release in `folder`, from `archive` or through pip; DownloadError where it is another."""
    source = folder / FOLDER
    unpacked = source / f".unpacked-{_changes_hash()[:16]}"  # sources with other changes are unpacked anew
    if unpacked.is_file():
        return source
    folder.mkdir(parents=True, exist_ok=True)
    archive = archive or _downloaded(folder)
    found = sha256_of(archive)
    if found != SHA256:
        raise DownloadError(f"{archive} has the sha256 {found}, and {ARCHIVE} has {SHA256}: remove it and try again")
    _unpack(archive, folder)
    _change(source / GGML)
    unpacked.touch()
    return source


def _downloaded(folder: Path) -> Path:
    """Let pip fetch it, which knows mirrors and proxies."""
    archive = folder / ARCHIVE
    if archive.is_file():
        return archive
    wanted = f"{DISTRIBUTION}=={LLAMA_VERSION}"
    try:
        run_pip(["download", "--quiet", "--no-deps", "--no-binary", DISTRIBUTION, "--dest", str(folder), wanted])
    except DownloadError as error:
        raise DownloadError(f"{wanted}: {error}; fetch {ARCHIVE} elsewhere and give --source FILE") from None
    if not archive.is_file():
        raise DownloadError(f"pip fetched another file than {ARCHIVE}; fetch it elsewhere and give --source FILE")
    return archive


def _unpack(archive: Path, folder: Path) -> None:
    total = count = 0
    with tarfile.open(archive) as tar:
        for member in tar:
            total, count = total + member.size, count + 1
            if total > MAX_BYTES or count > MAX_MEMBERS:
                raise DownloadError(f"{archive} unpacks to over {MAX_BYTES} bytes or {MAX_MEMBERS} files")
            # The release carries its git folder: what is built must not depend on it.
            if member.name.startswith(f"{FOLDER}/") and not member.name.startswith(f"{FOLDER}/.git/"):
                tar.extract(member, folder, filter="data")


def _change(folder: Path) -> None:
    """Put our changes into ggml's sources; DownloadError where a place that is to be changed is not there once."""
    for name, changes in CHANGES.items():
        path = folder / name
        text = path.read_text(encoding="utf-8")
        for old, new in changes:
            if text.count(old) != 1:
                raise DownloadError(f"{path} has not the one place that is to be changed: another release was unpacked")
            text = text.replace(old, new)
        path.write_text(text, encoding="utf-8")
    (folder / LANES).write_bytes(_lanes())


def _lanes() -> bytes:
    return (files("edgeqwen") / "engine_files" / LANES).read_bytes()


def _changes_hash() -> str:
    return hashlib.sha256(repr(sorted(CHANGES.items())).encode() + _lanes()).hexdigest()
