"""Parse JSON that nobody vouches for: bounded bytes in, data out; it knows no key of any file."""

from __future__ import annotations

import json
from typing import Any, NoReturn

from edgeqwen.errors import EdgeqwenError

SHOWN_CHARS = 120
CONFIG_BYTES_MAX = 4 << 20  # of a config.json, or a file like it: real ones have some kilobytes


def shown(value: object) -> str:
    """Text of a hostile value for a one-line message: printable, quoted where that helps, cut to a bounded length."""
    if isinstance(value, int) and value.bit_length() > 256:  # Python refuses to print integers of over 4,300 digits
        return f"an integer of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]}..."


def parse_object(raw: bytes, where: str, error: type[EdgeqwenError]) -> dict[str, Any]:
    """Return the JSON object in `raw`; an `error` that starts with `where` for everything else.

    Stricter than `json.loads`: UTF-8 only, no key twice, no NaN or Infinity.
    """
    try:
        data = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except RecursionError:
        raise error(f"{where}: the JSON is nested too deeply") from None
    except ValueError as fault:  # also UnicodeDecodeError and integers of over 4,300 digits
        raise error(f"{where}: not valid JSON: {fault}") from None
    if not isinstance(data, dict):
        raise error(f"{where}: expected a JSON object, found {shown(data)}")
    return data


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {shown(twice)} stands there twice")
    return data


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
