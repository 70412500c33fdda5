"""What crosses between the server and its engine's process: JSON with its length before it, and typed values in it.

Neither side trusts the other's bytes: sizes are bounded, types are checked, nothing is executed.
"""

from __future__ import annotations

import functools
import json
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, BinaryIO, TypeVar

from edgeqwen import errors
from edgeqwen.errors import EdgeqwenError, EngineError

MAX_FRAME_BYTES = 1 << 26
LENGTH_BYTES = 4  # of a frame's size, big-endian
Value = TypeVar("Value")


def frame(data: Mapping[str, Any]) -> bytes:
    """One frame; EngineError for what is no JSON or too large."""
    try:
        body = json.dumps(data, separators=(",", ":")).encode()  # ASCII: lone surrogates stay what they are
    except (TypeError, ValueError, RecursionError) as error:
        raise EngineError(f"a frame cannot be written as JSON: {error}") from None
    if len(body) > MAX_FRAME_BYTES:
        raise EngineError(f"a frame has {len(body)} bytes: at most {MAX_FRAME_BYTES} cross")
    return len(body).to_bytes(LENGTH_BYTES, "big") + body


def frames(stream: BinaryIO) -> Iterator[dict[str, Any]]:
    """Frames until the stream ends, in the middle of one too; EngineError for one that is damaged."""
    while len(head := stream.read(LENGTH_BYTES)) == LENGTH_BYTES:
        size = int.from_bytes(head, "big")
        if size > MAX_FRAME_BYTES:
            raise EngineError(f"a frame of {size} bytes was announced: at most {MAX_FRAME_BYTES} cross")
        body = stream.read(size)
        if len(body) < size:
            return
        try:
            data = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise EngineError(f"a frame is no JSON: {error}") from None
        if not isinstance(data, dict):
            raise EngineError(f"a frame is {type(data).__name__}, not an object")
        yield data


def plain(value: Any) -> Any:
    """A frozen dataclass, and what it holds, as JSON has it; fields that have their default are left out."""
    if is_dataclass(value) and not isinstance(value, type):
        pairs = ((name, getattr(value, name), default) for name, default in _defaults(type(value)).items())
        return {name: plain(held) for name, held, default in pairs if held is not default and held != default}
    if isinstance(value, Mapping):
        return {str(key): plain(held) for key, held in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value.decode("latin-1") if isinstance(value, bytes) else value


def typed(kind: type[Value], data: Any) -> Value:
    """The value of this type that `plain` wrote; EngineError for anything else."""
    value: Value = _typed(kind, data)
    return value


def plain_error(error: EdgeqwenError) -> dict[str, Any]:
    """An error's type, text and figures."""
    figures = {name: figure for name, figure in vars(error).items() if isinstance(figure, int)}
    return {"type": type(error).__name__, "text": str(error), "figures": figures}


def typed_error(data: Any) -> EdgeqwenError:
    """The error that `plain_error` wrote; a type that is not known here becomes EngineError."""
    try:
        kind: Any = getattr(errors, data["type"], EngineError)
        error = kind.__new__(kind, str(data["text"]))
        vars(error).update({name: int(figure) for name, figure in data["figures"].items()})
    except (TypeError, ValueError, KeyError, AttributeError):
        error = None
    if isinstance(error, EdgeqwenError):
        return error
    return EngineError(f"the engine's process reported an error that cannot be read: {data!r:.200}")


@functools.cache
def _defaults(kind: type) -> dict[str, Any]:
    """Name -> default of a dataclass's fields; MISSING where there is none."""
    return {f.name: f.default_factory() if callable(f.default_factory) else f.default for f in fields(kind)}


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _typed(kind: Any, data: Any) -> Any:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if isinstance(kind, type) and is_dataclass(kind):
        return _dataclass(kind, data)
    if origin in {types.UnionType, typing.Union}:
        return _first(args, data)
    if origin is tuple and isinstance(data, list):
        return _tuple(args, data)
    if isinstance(origin, type) and issubclass(origin, Mapping) and isinstance(data, dict):
        return {_key(args[0], name): _typed(args[1], held) for name, held in data.items()}
    if kind is bytes and isinstance(data, str):
        return data.encode("latin-1")
    numeric = kind is float and type(data) is int
    if kind is Any or numeric or type(data) is kind or (origin is typing.Literal and data in args):
        return data
    raise EngineError(f"a frame holds {data!r:.80} where {kind} belongs")


def _tuple(kinds: tuple[Any, ...], data: list[Any]) -> tuple[Any, ...]:
    if kinds[1:] == (...,):
        return tuple(_typed(kinds[0], item) for item in data)
    if len(kinds) != len(data):
        raise EngineError(f"a frame holds {len(data)} values where {len(kinds)} belong")
    return tuple(map(_typed, kinds, data))


def _dataclass(kind: type, data: Any) -> Any:
    hints = _hints(kind)
    if not isinstance(data, dict) or not data.keys() <= hints.keys():
        raise EngineError(f"a frame holds {data!r:.80} where a {kind.__name__} belongs")
    missing = [name for name, default in _defaults(kind).items() if default is MISSING and name not in data]
    if missing:
        raise EngineError(f"a frame's {kind.__name__} has no {missing[0]}")
    return kind(**{name: _typed(hints[name], held) for name, held in data.items()})


def _first(kinds: tuple[Any, ...], data: Any) -> Any:
    """As the first type of a union that fits."""
    for kind in kinds:
        try:
            return _typed(kind, data)
        except EngineError:
            continue
    raise EngineError(f"a frame holds {data!r:.80} where one of {kinds} belongs")


def _key(kind: Any, name: str) -> Any:
    """JSON's keys are texts."""
    try:
        return int(name) if kind is int else name
    except ValueError:
        raise EngineError(f"a frame has the key {name!r:.80} where a number belongs") from None
