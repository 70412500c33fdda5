"""edgeqwen's own wheel, made of the files that run here: the same bytes each time, and no build tool needed."""

from __future__ import annotations

from importlib.metadata import Distribution, PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path

from edgeqwen.errors import RequestError
from edgeqwen.wheel_file import write_wheel

PACKAGES = ("edgeqwen", "converters")
TAG = "py3-none-any"
_SKIPPED = {"__pycache__", ".mypy_cache", ".ruff_cache"}


def write_own_wheel(folder: Path) -> Path:
    """Write it into a folder; RequestError where pip does not know edgeqwen, whose requirements it has to name."""
    try:
        installed = distribution("edgeqwen")
    except PackageNotFoundError:
        raise RequestError("edgeqwen is not installed here, it only runs: pip install edgeqwen, then pack") from None
    members = {name: path.read_bytes() for package in PACKAGES for name, path in _files(package)}
    return write_wheel(folder, "edgeqwen", installed.version, TAG, members, _metadata(installed))


def _files(package: str) -> list[tuple[str, Path]]:
    """(name in the wheel, file) of a package, in order."""
    spec = find_spec(package)
    places = list(spec.submodule_search_locations or ()) if spec else []
    if not places:
        raise RequestError(f"the package {package} is not here: install edgeqwen again")
    root = Path(places[0])
    files = (path for path in sorted(root.rglob("*")) if path.is_file() and not _SKIPPED & set(path.parts))
    return [(f"{package}/{path.relative_to(root).as_posix()}", path) for path in files]


def _metadata(installed: Distribution) -> dict[str, bytes]:
    """What pip keeps of edgeqwen that belongs into its wheel: metadata, commands, licences."""
    found = {}
    for file in installed.files or ():
        _, _, name = file.as_posix().partition(".dist-info/")
        if name in {"METADATA", "entry_points.txt"} or name.startswith("licenses/"):
            found[name] = Path(str(installed.locate_file(file))).read_bytes()
    if not {"METADATA", "entry_points.txt"} <= set(found):
        raise RequestError("edgeqwen's metadata is incomplete here: install it again")
    return dict(sorted(found.items()))
