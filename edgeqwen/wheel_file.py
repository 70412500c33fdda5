"""Writes a wheel: the same bytes from the same members each time, whole or not at all; no build tool is needed."""

from __future__ import annotations

import base64
import hashlib
import zipfile
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

_DATE = (1980, 1, 1, 0, 0, 0)  # the first that a zip file knows


def write_wheel(
    folder: Path, name: str, version: str, tag: str, members: Mapping[str, bytes], information: Mapping[str, bytes]
) -> Path:
    """Write `members` (name -> bytes), and `information` into its .dist-info folder; WHEEL and RECORD are made here."""
    info = f"{name}-{version}.dist-info"
    pure = "true" if tag.endswith("-any") else "false"
    whole = {**members, **{f"{info}/{member}": data for member, data in information.items()}}
    whole[f"{info}/WHEEL"] = f"Wheel-Version: 1.0\nGenerator: edgeqwen\nRoot-Is-Purelib: {pure}\nTag: {tag}\n".encode()
    record = "".join(f"{member},sha256={_digest(data)},{len(data)}\n" for member, data in whole.items())
    whole[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{version}-{tag}.whl"
    with TemporaryDirectory(dir=folder, prefix=".wheel-") as scratch:
        draft = Path(scratch) / path.name
        with zipfile.ZipFile(draft, "w", zipfile.ZIP_DEFLATED) as archive:
            for member, data in whole.items():
                entry = zipfile.ZipInfo(member, _DATE)
                entry.external_attr = (0o755 if member.endswith(".so") else 0o644) << 16
                entry.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(entry, data)
        draft.replace(path)
    return path


def _digest(data: bytes) -> str:
    """As RECORD has it."""
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
