"""Takes a model's name apart as llama.cpp does: Qwen3-0.6B-Instruct is Qwen3, 0.6B, Instruct; it reads no file.

Source: gguf-py/gguf/metadata.py (get_model_id_components, id_to_title) and utility.py (size_label), whose guesses are
repeated here so that the keys under `general.` come out equal.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

_VERSION: Final = re.compile(r"(v|iter)?\d+([.]\d+)*", re.IGNORECASE)
_TYPE: Final = re.compile(r"i?q\d(_\w)*|b?fp?(16|32)", re.IGNORECASE)
_SIZE: Final = re.compile(r"(([A]|\d+[x])?\d+([._]\d+)?[KMBT][\d]?|small|mini|medium|large|x?xl)", re.IGNORECASE)
_FINETUNE: Final = re.compile(r"chat|instruct|vision|lora", re.IGNORECASE)
_MAX_CHARS: Final = 256


@dataclass(frozen=True, slots=True)
class NameParts:
    """What a name says; None for what it does not say."""

    full: str
    organization: str | None = None
    basename: str | None = None
    finetune: str | None = None
    version: str | None = None
    size_label: str | None = None


@dataclass(slots=True)
class _Part:
    text: str
    kinds: set[str]


def split_name(name: str, parameters: int) -> NameParts:
    """Take a folder's name or a hub id apart; `parameters` is the number of weights, to tell a size from a context."""
    name = name[:_MAX_CHARS]
    if " " in name:
        return NameParts(name)
    organization, slash, full = name.rpartition("/") if name.count("/") == 1 else ("", "", name)
    parts = [_Part(text, set()) for text in full.split("-") if text]
    for index, part in enumerate(parts):
        _annotate(part, index, parameters)
    _drop_words(parts)
    _find_basename(parts)
    named = {
        kind: [part.text for part in parts if kind in part.kinds] for kind in ("basename", "size_label", "finetune")
    }
    version = "-".join(part.text for part in parts if "version" in part.kinds and "basename" not in part.kinds) or None
    basename = "-".join(named["basename"]) or None
    finetune = "-".join(named["finetune"]) or None
    size = "-".join(dict.fromkeys(named["size_label"])) or None
    if size is None and finetune is None and version is None:
        basename = None  # too ambiguous
    return NameParts(
        full, organization if slash and organization[:1] != "." else None, basename, finetune, version, size
    )


def _annotate(part: _Part, index: int, parameters: int) -> None:
    if _VERSION.fullmatch(part.text):
        part.kinds.add("version")
    elif _TYPE.fullmatch(part.text):
        part.kinds.add("type")
        part.text = part.text.upper()
    elif index > 0 and _SIZE.fullmatch(part.text):
        _annotate_size(part, parameters)
    elif index > 0 and _FINETUNE.fullmatch(part.text):
        part.kinds.add("finetune")


def _annotate_size(part: _Part, parameters: int) -> None:
    """Tell a size (0.6B) from a context length (32K), which is far from the number of weights."""
    text = part.text.replace("_", ".")
    if text[-1].isdecimal():  # 7b1 is 7.1b
        text = f"{text[:-2]}.{text[-1]}{text[-2]}"
    if len(text) > 1 and text[-2].isdecimal() and text[-1] in "kmbt":
        text = text[:-1] + text[-1].upper()
    try:
        meant = float(text[:-1]) * pow(1000, " KMBT".find(text[-1]))
    except ValueError:  # a word: small, A3B
        meant = float(parameters)
    if parameters and abs(meant - parameters) > 7 * parameters // 8:
        part.kinds.add("finetune")
        text = text[:-1] + text[-1].lower()
    else:
        part.kinds.add("size_label")
    part.text = text


def _drop_words(parts: list[_Part]) -> None:
    """Where a size with digits is there, `small` and `large` are none."""
    sizes = [part for part in parts if "size_label" in part.kinds]
    if any(char.isdecimal() for part in sizes for char in part.text):
        for part in sizes:
            if part.text.isalpha():
                part.kinds.remove("size_label")


def _find_basename(parts: list[_Part]) -> None:
    at_start = True
    for part in parts:
        if at_start and ((not part.kinds and part.text[0].isalpha()) or "version" in part.kinds):
            part.kinds.add("basename")
        else:
            at_start = False
            if not part.kinds:
                part.kinds.add("finetune")
    for part in reversed(parts):  # a version at the end is no part of the base name
        if "basename" not in part.kinds or len(part.kinds) == 1:
            break
        part.kinds.remove("basename")


def make_title(name: str) -> str:
    """Write the words of a name with capitals, but for versions and acronyms."""
    words = name.strip().replace("-", " ").split()
    return " ".join(w.title() if w.islower() and not re.match(r"^(v\d+(?:\.\d+)*|\d.*)$", w) else w for w in words)


def size_label(parameters: int) -> str:
    """Round a number of weights for people: 596M, 1.7B."""
    scale, suffix = next(
        ((s, x) for limit, s, x in ((1e12, 1e-12, "T"), (1e9, 1e-9, "B"), (1e6, 1e-6, "M")) if parameters > limit),
        (1e-3, "K"),
    )
    scaled = parameters * scale
    digits = max(2 - len(str(round(scaled)).lstrip("0")), 0)
    return f"{scaled:.{digits}f}{suffix}"
