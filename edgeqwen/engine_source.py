"""The source release that engines are built from: fetched by pip, pinned by its hash, unpacked within limits."""

from __future__ import annotations

import tarfile
from pathlib import Path

from edgeqwen.errors import DownloadError
from edgeqwen.file_hash import sha256_of
from edgeqwen.native_engine import LLAMA_VERSION
from edgeqwen.pip import run_pip

DISTRIBUTION = "llama-cpp-python"
FOLDER = f"llama_cpp_python-{LLAMA_VERSION}"
ARCHIVE = f"{FOLDER}.tar.gz"
SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
# GCC 12's amxtileintrin.h says that _tile_loadconfig reads 8 bytes of its 64: what ggml writes behind them is dropped
# as dead, and the first use of a tile is an illegal instruction. A barrier before the call keeps it.
MENDED = "vendor/llama.cpp/ggml/src/ggml-cpu/amx/mmq.cpp"
CALL = "    _tile_loadconfig(&tc);\n"
BARRIER = '    __asm__ volatile("" : : "r"(&tc) : "memory");\n'
MAX_BYTES, MAX_MEMBERS = 1 << 30, 50_000  # unpacked: 179 MB in 4,200 files


def fetch_source(folder: Path, archive: Path | None = None) -> Path:
    """The unpacked source release in `folder`, from `archive` or through pip; DownloadError where it is another."""
    source = folder / FOLDER
    if (source / ".unpacked").is_file():
        return source
    folder.mkdir(parents=True, exist_ok=True)
    archive = archive or _downloaded(folder)
    found = sha256_of(archive)
    if found != SHA256:
        raise DownloadError(f"{archive} has the sha256 {found}, and {ARCHIVE} has {SHA256}: remove it and try again")
    _unpack(archive, folder)
    _mend(source / MENDED)
    (source / ".unpacked").touch()
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


def _mend(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    if text.count(CALL) != 1:
        raise DownloadError(f"{path} has not the one call that is to be mended: another release was unpacked")
    path.write_text(text.replace(CALL, BARRIER + CALL), encoding="utf-8")
