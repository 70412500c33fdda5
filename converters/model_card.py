"""The facts of a model card that a converted file repeats, from the front matter of README.md; it is no YAML parser.

Read are `key: text`, `key: [a, b]` and `key:` followed by `- text` lines, for the keys below; anything else is skipped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from converters.source_file import SourceFile

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

CARD: Final = "README.md"
_TEXTS = frozenset({"license", "license_name", "license_link", "pipeline_tag"})
_LISTS = frozenset({"base_model", "language", "tags"})
_MAX_BYTES = 64 << 10  # of the file's start; the rest is prose
_MAX_ITEMS = 64
_MAX_CHARS = 256


def read_card(folder: Path) -> Mapping[str, str | tuple[str, ...]]:
    """Return what the card says of licence (texts) and of base model, language and tags (tuples); {} without a card."""
    if not (folder / CARD).exists():
        return {}
    source = SourceFile(folder, CARD)
    try:
        raw = source.read_at(0, min(source.size, _MAX_BYTES))
    finally:
        source.close()
    lines = raw.decode("utf-8", "replace").splitlines()
    if not lines or lines[0] != "---" or "---" not in lines[1:]:
        return {}
    return _front_matter(lines[1 : lines.index("---", 1)])


def _front_matter(lines: list[str]) -> dict[str, str | tuple[str, ...]]:
    card: dict[str, str | tuple[str, ...]] = {}
    key = ""
    for line in lines:
        if line.lstrip().startswith("- "):
            items = card.get(key)
            if isinstance(items, tuple) and len(items) < _MAX_ITEMS and (item := _text(line.lstrip()[2:])):
                card[key] = (*items, item)
            continue
        if line[:1].isspace():
            continue
        key, _, value = line.partition(":")
        if key in _TEXTS and (text := _text(value)):
            card[key] = text
        elif key in _LISTS:
            card[key] = _items(value)
    return {key: value for key, value in card.items() if value}


def _items(value: str) -> tuple[str, ...]:
    value = value.strip()
    flow = value[1:-1].split(",") if value.startswith("[") and value.endswith("]") else [value]
    return tuple(text for item in flow[:_MAX_ITEMS] if (text := _text(item)))


def _text(value: str) -> str:
    """Return a plain or quoted scalar of one line; empty for what only a YAML parser could tell."""
    value = value.strip()
    if len(value) >= 2 and value[0] == value[-1] and value[0] in "'\"" and "\\" not in value:
        value = value[1:-1]
    elif (
        value[:1] in {"&", "*", "!", "|", ">", "{", "[", "%", "@", "`", "#", "'", '"'} or " #" in value or ": " in value
    ):
        return ""
    return value if len(value) <= _MAX_CHARS and value.isprintable() else ""
