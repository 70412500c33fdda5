"""A stream of deltas for an event loop: read in a thread of its own, and ended when the loop's reader leaves."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, Callable, Iterator

from edgeqwen.types import Delta


async def deltas_in_thread(start: Callable[[], Iterator[Delta]], end: Callable[[], None]) -> AsyncGenerator[Delta]:
    """The deltas of `start()`, which is called and read in a thread; what it raises is raised here.

    The thread does not wait for the reader. When the reader leaves early, or is cancelled, `end` is called from the
    loop's thread: it must make the deltas come to an end soon, and that end is waited for.
    """
    loop = asyncio.get_running_loop()
    arrived: asyncio.Queue[Delta | BaseException | None] = asyncio.Queue()  # None: there are no more
    gone = asyncio.Event()

    def tell(what: Callable[..., None], *item: Delta | BaseException | None) -> None:
        with contextlib.suppress(RuntimeError):  # the loop was closed and left the answer behind
            loop.call_soon_threadsafe(what, *item)

    def read() -> None:
        try:
            for delta in start():
                tell(arrived.put_nowait, delta)
        except BaseException as error:  # noqa: BLE001 - raised in the reader, whose error it is
            tell(arrived.put_nowait, error)
        else:
            tell(arrived.put_nowait, None)
        tell(gone.set)

    threading.Thread(target=read, name="edgeqwen answer", daemon=True).start()
    try:
        while (item := await arrived.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        if not gone.is_set():
            end()
        await gone.wait()
