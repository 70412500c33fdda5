"""The wheels that a pack needs: which ones pip would install on another machine, and fetching them one by one.

pip evaluates the conditions of requirements ("only before Python 3.13", "only on aarch64") for the Python that runs it.
What is right for the target is worked out here, and pip is asked again for what it left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from edgeqwen.errors import DownloadError
from edgeqwen.file_hash import sha256_of
from edgeqwen.pack_target import Target
from edgeqwen.pip import Pip, run_pip

_NAME = re.compile(r"[A-Za-z0-9_.+!-]{1,200}\.whl")
_SHA256 = re.compile(r"[0-9a-f]{64}")
ROUNDS = 8  # of asking pip for what is missing; one or two are enough


@dataclass(frozen=True, slots=True)
class Needed:
    """One wheel of the index, or a local one where `local` says so."""

    name: str
    version: str
    file: str
    sha256: str
    python: str  # one of the Pythons that need it
    local: bool = False


def needed_wheels(roots: Sequence[str], target: Target, python: str, pip: Pip = run_pip) -> list[Needed]:
    """Everything that `pip install ROOTS` would need on the target with that Python; nothing is fetched but metadata.

    `roots` are requirements, local wheels as "name[extra] @ file:///...". DownloadError where a wheel does not exist.
    """
    extra: list[str] = []
    for _ in range(ROUNDS):
        words = ["install", "--dry-run", "--ignore-installed", "--quiet", "--report", "-", "--target", "unused"]
        items = _items(pip([*words, *_for(target, python), *roots, *extra]))
        reached, missing = _closure([*roots, *extra], items, target.markers(python))
        if not missing:
            return [_needed(item, python) for name, item in sorted(items.items()) if name in reached]
        extra += missing
    raise DownloadError(f"pip does not find all that is needed for Python {python}: {', '.join(extra)}")


def _for(target: Target, python: str) -> list[str]:
    """The options that make pip choose for another machine."""
    tags = [word for tag in target.tags for word in ("--platform", tag)]
    return ["--only-binary=:all:", "--implementation", "cp", "--python-version", python, *tags]


def _items(report: str) -> dict[str, Mapping[str, Any]]:
    """Name -> what pip's report says of one distribution."""
    try:
        found = json.loads(report)["install"]
        return {canonicalize_name(item["metadata"]["name"]): item for item in found}
    except (ValueError, KeyError, TypeError) as error:
        raise DownloadError(f"pip's report cannot be read ({error}): a newer pip may help") from None


def _closure(
    roots: Sequence[str], items: Mapping[str, Mapping[str, Any]], markers: Mapping[str, str]
) -> tuple[set[str], list[str]]:
    """The names that the target needs, and the requirements that pip has left out."""
    wanted = [Requirement(root) for root in roots]
    seen: set[tuple[str, str]] = set()
    missing: list[str] = []
    while wanted:
        requirement = wanted.pop()
        name = canonicalize_name(requirement.name)
        if name not in items:
            missing.append(str(Requirement(f"{requirement.name}{_extras(requirement)}{requirement.specifier}")))
            continue
        for extra in ("", *requirement.extras):
            if (name, extra) not in seen:
                seen.add((name, extra))
                wanted += _requirements(items[name], {**markers, "extra": extra})
    return {name for name, _ in seen}, sorted(set(missing))


def _extras(requirement: Requirement) -> str:
    return f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""


def _requirements(item: Mapping[str, Any], markers: dict[str, str]) -> list[Requirement]:
    """What one distribution needs where the markers are these."""
    try:
        found = [Requirement(text) for text in item["metadata"].get("requires_dist", ())]
    except InvalidRequirement as error:
        raise DownloadError(f"{item['metadata']['name']} has a requirement that cannot be read: {error}") from None
    return [one for one in found if one.marker is None or one.marker.evaluate(markers)]


def _needed(item: Mapping[str, Any], python: str) -> Needed:
    metadata, info = item["metadata"], item["download_info"]
    file = unquote(urlsplit(info["url"]).path).rpartition("/")[2]
    digest = info.get("archive_info", {}).get("hashes", {}).get("sha256", "")
    if not _NAME.fullmatch(file) or not _SHA256.fullmatch(digest):
        raise DownloadError(f"pip's report names {file!r} with the sha256 {digest!r}: no wheel that can be checked")
    return Needed(metadata["name"], metadata["version"], file, digest, python, bool(item.get("is_direct")))


def fetch_wheel(wheel: Needed, folder: Path, target: Target, pip: Pip = run_pip) -> bool:
    """Bring a wheel of the index into a folder; False where it is there already. DownloadError for other bytes."""
    path = folder / wheel.file
    if path.is_file() and sha256_of(path) == wheel.sha256:
        return False
    path.unlink(missing_ok=True)
    words = ["download", "--quiet", "--no-deps", "--dest", str(folder), *_for(target, wheel.python)]
    pip([*words, f"{wheel.name}=={wheel.version}"])
    found = sha256_of(path) if path.is_file() else "nothing"
    if found != wheel.sha256:
        raise DownloadError(f"{wheel.file}: the index gave {found}, and said before that it has {wheel.sha256}")
    return True
