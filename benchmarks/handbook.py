"""Prose in eight languages that nothing here was made from: The Debian Administrator's Handbook, out of its package.

    apt-get download debian-handbook

The book is under the GPL or CC-BY-SA and is not copied into this project.
"""

from __future__ import annotations

import html
import io
import re
import subprocess
import tarfile
from pathlib import Path
from typing import IO, Final

LANGUAGES: Final = ("en-US", "zh-CN", "de-DE", "fr-FR", "es-ES", "ja-JP", "ru-RU", "pt-BR")
_PAGES: Final = ("conclusion.html", "foreword.html", "sect.becoming-package-maintainer.html")
_DENSE: Final = ("zh", "ja")  # a character says more there
_OTHER_SCRIPTS: Final = (*_DENSE, "ru")
_PARAGRAPH: Final = re.compile(r'<div class="para">(.*?)</div>', re.DOTALL)
_TAG: Final = re.compile(r"<[^>]+>")


def prose(package: Path) -> str:
    """The first paragraphs of three pages in each language: 25,000 characters in all."""
    done = subprocess.run(["dpkg-deb", "--fsys-tarfile", package], capture_output=True, check=True)
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        return "\n".join(_of(archive, language) for language in LANGUAGES)


def _of(archive: tarfile.TarFile, language: str) -> str:
    shortest, most = (40, 1600) if language.startswith(_DENSE) else (120, 3600)
    text = ""
    for page in _PAGES:
        held: IO[bytes] | None = archive.extractfile(f"./usr/share/doc/debian-handbook/html/{language}/{page}")
        for found in _PARAGRAPH.findall(held.read().decode("utf-8") if held else ""):
            paragraph = " ".join(html.unescape(_TAG.sub("", found)).split())
            if len(paragraph) > shortest and not (language.startswith(_OTHER_SCRIPTS) and _english(paragraph)):
                text += f"{paragraph}\n"
    return text[:most]


def _english(paragraph: str) -> bool:
    """Not translated."""
    return sum(map(str.isascii, paragraph)) > len(paragraph) / 2
