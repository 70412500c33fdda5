"""Makes an environment of each client in a folder, where there is none of the same requirements yet.

python tests/clients/install.py build/clients
"""

import hashlib
import shutil
import subprocess
import sys
import venv
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent


def python_environment(requirements: Path, folder: Path) -> None:
    venv.create(folder, with_pip=True, symlinks=True)
    subprocess.run(
        [folder / "bin/python", "-m", "pip", "install", "--quiet", "--no-deps", "-r", requirements], check=True
    )


def node_environment(package: Path, folder: Path) -> None:
    if shutil.which("npm") is None:
        raise SystemExit("npm is not installed, and two of the clients run on Node 20 or later: apt-get install npm")
    folder.mkdir(parents=True)
    for name in (package.name, "package-lock.json"):
        shutil.copy(package.with_name(name), folder)
    words = ["npm", "ci", "--silent", "--ignore-scripts", "--no-audit", "--no-fund"]
    subprocess.run(words, cwd=folder, check=True)


def install(make, requirements: Path, folder: Path) -> None:
    """Make an environment anew unless its stamp is that of the requirements."""
    lock = requirements.with_name("package-lock.json")
    text = sys.version.encode() + b"".join(path.read_bytes() for path in (requirements, lock) if path.exists())
    stamp, digest = folder / "requirements.sha256", hashlib.sha256(text).hexdigest()
    if stamp.exists() and stamp.read_text() == digest:
        return
    shutil.rmtree(folder, ignore_errors=True)
    make(requirements, folder)
    stamp.write_text(digest)
    print(f"{folder.name} is installed", flush=True)  # noqa: T201


def main() -> None:
    out = Path(sys.argv[1]).resolve()
    wanted = [(python_environment, path, out / path.stem) for path in sorted((HERE / "requirements").glob("*.txt"))]
    wanted.append((node_environment, HERE / "node/package.json", out / "node"))
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda job: install(*job), wanted))


if __name__ == "__main__":
    main()
