"""Answers side by side -> one HTTP response, whole or as server-sent events, for as long as its client is there."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Coroutine, Iterable, Sequence
from contextlib import aclosing
from typing import Any

from starlette.types import Receive, Scope, Send

from edgeqwen.errors import RequestError
from edgeqwen.model import fold
from edgeqwen.server.failures import failure_of, placed
from edgeqwen.server.openai_response import Json, Wire
from edgeqwen.server.presenter import Presenter
from edgeqwen.server.record import Record
from edgeqwen.server.request import Engine, Request
from edgeqwen.types import Delta, Usage

PAUSE_S = 5.0  # of silence, until a comment says that there is somebody: clients give up after 10 s and more
Piece = tuple[int, Delta]  # number of the answer and what it made visible

_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}  # proxies that hold a stream back
_DONE = b"data: [DONE]\n\n"


class Answering:
    """An ASGI response. What fails before anything was sent raises; afterwards it is a frame, and no [DONE]."""

    def __init__(
        self,
        engine: Engine,
        requests: Sequence[Request],
        presenters: Sequence[Presenter],
        wire: Wire,
        record: Record,
        headers: dict[str, str],
        structure: str = "",
    ) -> None:
        """`structure`: the body's field that holds the content to a shape."""
        self._structure = structure
        self._engine = engine
        self._requests = requests
        self._presenters = presenters
        self._wire = wire
        self._record = record
        self._headers = headers
        self._pause_s = PAUSE_S
        self._started = False  # a stream: its status is sent

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's signature
        work = self._stream(send) if self._record.stream else self._whole(send)
        self._record.gone = not await while_connected(receive, work)

    async def _whole(self, send: Send) -> None:
        answers: list[list[Delta]] = [[] for _ in self._requests]
        async with aclosing(self._pieces()) as pieces:
            async for piece in pieces:
                if piece is not None:
                    answers[piece[0]].append(piece[1])
        body = to_json(self._wire.whole([fold(deltas) for deltas in answers]))
        await _start(send, "application/json", {**self._headers, "content-length": str(len(body))})
        await send({"type": "http.response.body", "body": body})

    async def _stream(self, send: Send) -> None:
        try:
            await self._send_events(send)
        except Exception as error:
            if not self._started:
                raise
            failure = failure_of(error)
            self._record.error = failure.code or "invalid_request"
            await send({"type": "http.response.body", "body": b"data: " + failure.body + b"\n\n"})
            if failure.code == "internal_error":
                raise

    async def _send_events(self, send: Send) -> None:
        async with aclosing(self._events()) as events:
            async for event in events:
                if not self._started:
                    await _start(send, "text/event-stream; charset=utf-8", {**self._headers, **_HEADERS})
                    self._started = True
                await send({"type": "http.response.body", "body": event, "more_body": True})
                await asyncio.sleep(0)  # neither line waits where much is ready: others want their turn
        await send({"type": "http.response.body", "body": _DONE})

    async def _events(self) -> AsyncGenerator[bytes]:
        """The stream's bytes; a comment where there is nothing else to say."""
        wire, begun = self._wire, set[int]()
        usages = [Usage() for _ in self._requests]
        async with aclosing(self._pieces()) as pieces:
            async for piece in pieces:
                if piece is None:
                    yield b": waiting\n\n"
                    continue
                index, delta = piece
                if delta.prompt_progress is not None:
                    yield b": prompt %d/%d\n\n" % delta.prompt_progress
                chunks = [] if index in begun else list(wire.start(index))
                begun.add(index)
                chunks += wire.push(index, delta)
                usages[index] = delta.usage or usages[index]
                if chunks:
                    yield _frames(chunks)
        if last := list(wire.end(usages)):
            yield _frames(last)

    async def _pieces(self) -> AsyncGenerator[Piece | None]:
        try:
            async with aclosing(side_by_side(self._engine, self._requests, self._pause_s)) as pieces:
                async for piece in pieces:
                    yield self._presented(piece)
        except RequestError as error:
            raise placed(error, self._structure) from error

    def _presented(self, piece: Piece | None) -> Piece | None:
        if piece is None:
            return None
        index, delta = piece
        self._record.saw(delta)
        return index, self._presenters[index].push(delta)


async def side_by_side(engine: Engine, requests: Sequence[Request], pause_s: float) -> AsyncGenerator[Piece | None]:
    """The deltas of several answers as they come; None after so many seconds without any. The first error ends all."""
    queue: asyncio.Queue[Piece | Exception] = asyncio.Queue()

    async def pump(index: int, request: Request) -> None:
        try:
            async with aclosing(engine.answer(request)) as deltas:
                async for delta in deltas:
                    queue.put_nowait((index, delta))
        except Exception as error:  # noqa: BLE001 - raised by the reader below
            queue.put_nowait(error)

    tasks = [asyncio.create_task(pump(index, request)) for index, request in enumerate(requests)]
    left = len(tasks)
    try:
        while left:
            piece = await _next(queue, pause_s)
            left -= piece is not None and piece[1].finish_reason is not None
            yield piece
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _next(queue: asyncio.Queue[Piece | Exception], pause_s: float) -> Piece | None:
    try:
        async with asyncio.timeout(pause_s):
            event = await queue.get()
    except TimeoutError:
        return None
    if isinstance(event, Exception):
        raise event
    return event


async def while_connected(receive: Receive, work: Coroutine[Any, Any, None]) -> bool:
    """Do the work unless the client leaves first; whether it was done. Its body must have been read."""
    working, leaving = asyncio.create_task(work), asyncio.create_task(_gone(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            return False
        await working
        return True
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _start(send: Send, content_type: str, headers: dict[str, str]) -> None:
    pairs = [
        (name.encode(), value.encode("latin-1")) for name, value in {"content-type": content_type, **headers}.items()
    ]
    await send({"type": "http.response.start", "status": 200, "headers": pairs})


def to_json(data: Json) -> bytes:
    """UTF-8, as small as it gets."""
    return json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode()


def _frames(chunks: Iterable[Json]) -> bytes:
    return b"".join(b"data: " + to_json(chunk) + b"\n\n" for chunk in chunks)
