"""A request's body: read within a size and a time, then JSON within a depth and a count; it knows no field."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from starlette.requests import ClientDisconnect, Request

from edgeqwen.errors import RequestError
from edgeqwen.server.failures import FieldError, HttpError
from edgeqwen.strict_json import parse_object

MAX_BODY_BYTES = 2 << 20  # a context of 128k tokens is a quarter of it
MAX_BODIES_BYTES = 64 << 20  # of all bodies that are being read at a time
SMALL_BYTES = 64 << 10
BODY_S = 30.0  # uvicorn waits for ever
MAX_DEPTH = 64
MAX_VALUES = 200_000


class BodyReader:
    """Reads bodies; together they never take more than MAX_BODIES_BYTES."""

    def __init__(self, *, max_bytes: int = MAX_BODY_BYTES, seconds: float = BODY_S) -> None:
        self._max_bytes = max_bytes
        self._seconds = seconds
        self._held = 0

    async def json(self, request: Request) -> dict[str, Any]:
        """The body's JSON object. HttpError or FieldError for anything else."""
        _check_type(request.headers.get("content-type", ""), request.headers.get("content-encoding", ""))
        self._check_length(request.headers.get("content-length", ""))
        with self._counted() as held:
            try:
                async with asyncio.timeout(self._seconds):
                    raw = await self._read(request, held)
            except TimeoutError:
                raise HttpError(408, f"the body did not come within {self._seconds:g} s", code="body_timeout") from None
            # a large one takes a second of Python's time: other answers go on meanwhile
            return parse_body(raw) if len(raw) < SMALL_BYTES else await asyncio.to_thread(parse_body, raw)

    async def _read(self, request: Request, held: list[int]) -> bytes:
        raw = bytearray()
        try:
            async for part in request.stream():
                raw += part
                self._held += len(part)
                held[0] += len(part)
                if len(raw) > self._max_bytes:
                    raise self._too_large()
                if self._held > MAX_BODIES_BYTES:
                    raise HttpError(503, "too many large requests at a time", code="server_busy", retry_s=5)
        except ClientDisconnect:
            raise HttpError(400, "the client left before its body was complete") from None
        return bytes(raw)

    def _check_length(self, length: str) -> None:
        if length.isdecimal() and int(length[:20]) > self._max_bytes:
            raise self._too_large()

    def _too_large(self) -> HttpError:
        return HttpError(413, f"the body is larger than {self._max_bytes} bytes", code="body_too_large")

    @contextmanager
    def _counted(self) -> Iterator[list[int]]:
        held = [0]
        try:
            yield held
        finally:
            self._held -= held[0]


def parse_body(raw: bytes) -> dict[str, Any]:
    """Parse bounded JSON; FieldError or RequestError says where it fails."""
    data = parse_object(raw, "the body", RequestError)
    count = 0
    layer = [(_Place(None, ""), data)]
    for _ in range(MAX_DEPTH):
        count += len(layer)
        if count > MAX_VALUES:
            raise HttpError(400, f"the body holds more than {MAX_VALUES} values")
        layer = [inner for place, value in layer for inner in _inside(place, value)]
        if not layer:
            return data
    raise HttpError(400, f"the body is nested deeper than {MAX_DEPTH} levels")


class _Place(NamedTuple):
    """Where a value stands; a text only when it is asked for: keys may be long and their values many."""

    parent: _Place | None
    key: str | int

    def __str__(self) -> str:
        key = f"[{self.key}]" if isinstance(self.key, int) else self.key[:40]
        if self.parent is None or self.parent.parent is None:
            return key
        return f"{self.parent}{key}" if isinstance(self.key, int) else f"{self.parent}.{key}"


def _inside(place: _Place, value: Any) -> list[tuple[_Place, Any]]:
    """The values in a value; FieldError for text that is no Unicode and for infinite numbers."""
    if isinstance(value, str):
        _check_text(value, place)
    elif isinstance(value, float) and not math.isfinite(value):
        raise FieldError(str(place), f"{place} is too large a number")
    elif isinstance(value, list):
        return [(_Place(place, index), item) for index, item in enumerate(value) if not _is_plain(item)]
    elif isinstance(value, dict):
        for key in value:
            _check_text(key, place)
        return [(_Place(place, key), item) for key, item in value.items() if not _is_plain(item)]
    return []


def _is_plain(value: Any) -> bool:
    """Whether there is nothing to look for in it: a prompt's ids are many."""
    return value is None or isinstance(value, int)


def _check_text(text: str, place: _Place) -> None:
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        raise FieldError(
            str(place), f"{place} has a lone surrogate (U+{code:04X}) at character {error.start}: "
            "it is no valid Unicode; send it as UTF-8"
        ) from None  # fmt: skip


def _check_type(content_type: str, encoding: str) -> None:
    """Refuse what is no plain JSON: a browser sends other types to anybody, and a packed body has no honest size."""
    kind = content_type.partition(";")[0].strip().lower()
    is_json = kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))
    if not is_json or encoding.strip().lower() not in {"", "identity"}:
        found = f"{kind[:60] or 'nothing'!r}" + (f" packed as {encoding[:20]!r}" if encoding else "")
        raise HttpError(
            415, f"send JSON as it is, with the header Content-Type: application/json; this is {found}",
            code="unsupported_media_type",
        )  # fmt: skip
