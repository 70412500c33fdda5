"""Makes emulated Raspberry Pis in a folder: Debian's arm64 Python, and edgeqwen installed there from wheels alone.

python tests/arm/sysroot.py build/arm

What is downloaded (25 packages of Debian 12 and of 13, 30 wheels) is kept and not asked for again. Needs apt-get and
dpkg, but no root: apt gets a folder of its own for its lists. The engine wheel must be in build/arm/wheels: make arm
puts it there.
"""

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from boards import BOARDS, Board, dress

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parents[1]
PYTHON = "3.11"  # Debian 12's and Raspberry Pi OS 12's
PACKAGES = (
    "libc6", "libgcc-s1", "libstdc++6", "zlib1g", "libexpat1", "libffi8", "libssl3", "libbz2-1.0", "liblzma5",
    "libsqlite3-0", "libuuid1", "libcrypt1", f"python{PYTHON}", f"python{PYTHON}-minimal",
    f"libpython{PYTHON}-minimal", f"libpython{PYTHON}-stdlib",
)  # fmt: skip
# What install.sh runs besides, for a whole system (tests/arm/enter.sh).
TOOLS = (
    "dash", "coreutils", "sed", "libc-bin", "libselinux1", "libpcre2-8-0", "libacl1", "libattr1", "libgmp10",
    "libzstd1",
)  # fmt: skip
# Raspberry Pi OS 13's Debian: its Python, and what has another name there.
NEWER, NEWER_PYTHON, RENAMED = "trixie", "3.13", {"libssl3": "libssl3t64"}
MIRROR = "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian {suite} main\n"
QEMU = "qemu-aarch64-static"
GLIBC = 36  # 2.36, Debian 12's
PLATFORMS = [f"manylinux_2_{minor}_aarch64" for minor in range(17, GLIBC + 1)] + ["manylinux2014_aarch64"]


def fail(text: str) -> None:
    raise SystemExit(f"error: {text}")


def run(*words, what: str, **options) -> str:
    """The output of a program; a line that says what could not be done where it fails."""
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, check=False, **options)
    if done.returncode:
        fail(f"{what}: {' '.join((done.stderr or done.stdout).split())[-600:]}")
    return done.stdout


def fetch_packages(folder: Path, names, architecture: str, suite: str = "") -> list[Path]:
    """The .deb files of this machine's Debian, or of a suite, in `folder`; what is there is not asked for again."""
    missing = [name for name in names if not list(folder.glob(f"{name}_*_{architecture}.deb"))]
    if missing:
        if shutil.which("apt-get") is None:
            fail("the arm tier needs apt-get: it takes an arm64 Python from Debian 12")
        state = folder / f"apt-{architecture}"
        for name in ("lists/partial", "cache/archives/partial"):
            (state / name).mkdir(parents=True, exist_ok=True)
        (state / "status").touch()
        own = [
            f"APT::Architecture={architecture}", f"APT::Architectures={architecture}", f"Dir::State={state}",
            f"Dir::State::lists={state}/lists", f"Dir::State::status={state}/status", f"Dir::Cache={state}/cache",
            "APT::Sandbox::User=root",
        ]  # fmt: skip
        if suite:
            (state / "sources.list").write_text(MIRROR.format(suite=suite), "utf-8")
            own += [f"Dir::Etc::sourcelist={state}/sources.list", "Dir::Etc::sourceparts=/dev/null"]
        apt = ["apt-get", "-qq", *(word for one in own for word in ("-o", one))]
        run(*apt, "update", what=f"apt-get cannot get the lists of {architecture} packages")
        run(*apt, "download", *missing, what=f"apt-get cannot fetch {' '.join(missing)}", cwd=folder)
    return [next(iter(folder.glob(f"{name}_*_{architecture}.deb"))) for name in names]


def fetch_wheels(folder: Path) -> None:
    """The wheels of requirements.txt for a board; pip refuses where one is only there as source."""
    stamp, text = folder / "requirements.txt", (HERE / "requirements.txt").read_bytes()
    if stamp.is_file() and stamp.read_bytes() == text:
        return
    words = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    words += [word for name in PLATFORMS for word in ("--platform", name)]
    words += ["--python-version", PYTHON, "--implementation", "cp", "--dest", folder, "-r", HERE / "requirements.txt"]
    run(*words, what="pip cannot fetch the wheels of tests/arm/requirements.txt")
    stamp.write_bytes(text)


def build_wheel(folder: Path) -> Path:
    """edgeqwen itself, as it is here."""
    for old in folder.glob("edgeqwen-*.whl"):
        old.unlink()
    words = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, PROJECT]
    run(*words, what="edgeqwen's own wheel cannot be built")
    return next(iter(folder.glob("edgeqwen-*.whl")))


def unpack(packages: list[Path], root: Path) -> None:
    for package in packages:
        run("dpkg", "-x", package, root, what=f"{package.name} cannot be unpacked")


def board_root(out: Path, packages: list[Path], name: str) -> None:
    """A root of its own for a board: qemu takes one folder, in which the board's /proc and /sys lie as well."""
    root = out / name
    if not (root / "complete").is_file():
        shutil.rmtree(root, ignore_errors=True)
        unpack(packages, root)
        (root / "complete").touch()
    dress(root, BOARDS[name])


def system_root(root: Path, packages: list[Path]) -> None:
    """Debian with a shell and its tools, for any board: what its kernel says is mounted into it."""
    if not (root / "complete").is_file():
        shutil.rmtree(root, ignore_errors=True)
        unpack(packages, root)
        for place in ("bin", "lib", "sbin"):  # Debian 13's packages bring them below usr alone
            if not (root / place).exists():
                (root / place).symlink_to(f"usr/{place}")
        for place in ("proc", "sys", "dev", "tmp", "home/pi", "media/stick"):
            (root / place).mkdir(parents=True, exist_ok=True)
        (root / "complete").touch()


def write_launcher(out: Path, board: Board) -> None:
    """The board's Python as a program of this machine, for whatever starts a process there."""
    root = out / board.name
    launcher = out / f"{board.name}-python"
    words = shlex.join(map(str, (out / QEMU, "-cpu", board.processor, "-L", root, root / f"usr/bin/python{PYTHON}")))
    launcher.write_text(f'#!/bin/sh\nexec {words} "$@"\n', "utf-8")
    launcher.chmod(0o755)


def install(out: Path, board: str) -> None:
    """Let pip on the board install everything from the folder of wheels: its tags decide, and there is no compiler."""
    site, wheels = out / "site", sorted((out / "wheels").glob("*.whl"))
    digest = hashlib.sha256(b"".join(hashlib.sha256(path.read_bytes()).digest() for path in wheels)).hexdigest()
    stamp = out / "site.sha256"
    if stamp.is_file() and stamp.read_text() == digest and site.is_dir():
        return
    shutil.rmtree(site, ignore_errors=True)
    pip = next(path for path in wheels if path.name.startswith("pip-"))
    words = [out / f"{board}-python", f"{pip}/pip", "install", "--quiet", "--no-index", "--only-binary=:all:"]
    words += ["--no-compile", "--disable-pip-version-check"]
    words += ["--find-links", out / "wheels", "--target", site, "edgeqwen[llama,onnx]", "edgeqwen-engine"]
    environment = {"PATH": "", "HOME": str(out / "home"), "LANG": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1"}
    run(*words, what="pip on the emulated board cannot install edgeqwen", env=environment)
    stamp.write_text(digest)


def emulator(out: Path) -> None:
    """qemu in the folder: what is installed, or Debian's package unpacked."""
    target = out / QEMU
    if target.exists():
        return
    found = shutil.which(QEMU)
    if found is None:
        architecture = run("dpkg", "--print-architecture", what="dpkg does not say its architecture").strip()
        unpack(fetch_packages(out / "debs", ["qemu-user-static"], architecture), out / "qemu")
        found = out / "qemu/usr/bin" / QEMU
    shutil.copy(found, target)


def main() -> None:
    out = Path(sys.argv[1]).resolve()
    for name in ("debs", "wheels", "home"):
        (out / name).mkdir(parents=True, exist_ok=True)
    if not list((out / "wheels").glob("edgeqwen_engine-*_aarch64.whl")):
        fail(f"no engine in {out / 'wheels'}: edgeqwen engine build --for linux-aarch64 --out {out / 'wheels'}")
    emulator(out)
    packages = fetch_packages(out / "debs", PACKAGES, "arm64")
    fetch_wheels(out / "wheels")
    build_wheel(out / "wheels")
    for name in BOARDS:
        board_root(out, packages, name)
    system_root(out / f"system-{PYTHON}", [*packages, *fetch_packages(out / "debs", TOOLS, "arm64")])
    newer = [RENAMED.get(name, name).replace(PYTHON, NEWER_PYTHON) for name in (*PACKAGES, *TOOLS)]
    system_root(out / f"system-{NEWER_PYTHON}", fetch_packages(out / "debs" / NEWER, newer, "arm64", NEWER))
    for board in BOARDS.values():
        write_launcher(out, board)
    install(out, next(iter(BOARDS)))
    os.utime(out)
    print(f"{', '.join(BOARDS)} are in {out}")  # noqa: T201


if __name__ == "__main__":
    main()
