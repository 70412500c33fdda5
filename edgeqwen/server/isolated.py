"""The engine in a child process: native code that dies takes its answers with it, not the server."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import queue
import re
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from dataclasses import fields, replace
from typing import Any, BinaryIO

from edgeqwen.errors import EdgeqwenError, EngineDownError, EngineError
from edgeqwen.server.answers import Answers
from edgeqwen.server.frames import frame, frames, plain, typed, typed_error
from edgeqwen.server.request import EngineInfo, EngineLoad, EngineSettings, Request, State
from edgeqwen.types import Delta

logger = logging.getLogger("edgeqwen")
COMMAND = (sys.executable, "-X", "faulthandler", "-m", "edgeqwen.server.engine_child")
BACKOFF_S, BACKOFF_MAX_S = 0.5, 30.0  # before a restart: doubled each time,
STEADY_S = 60.0  # and from the start again after a child that lived so long
CLOSE_S = 10.0  # a child that is asked to end has this long
# Of the last words all but the stacks that faulthandler and ggml print: what was wrong stands before them.
_STACK = re.compile(r"\s*$|  File |(Current t|T)hread 0x|Extension modules|.*\[0x[0-9a-f]+\]$")
GAUGES = {"running", "queued", "kv_tokens", "kv_capacity"}  # of EngineLoad: the rest are counts


class IsolatedEngine:
    """edgeqwen.server.request.Engine over a child process, which is started again when it dies."""

    def __init__(self, settings: EngineSettings, command: tuple[str, ...] = COMMAND) -> None:
        """`command` starts another child, for tests."""
        self.state: State = "loading"
        self.info: EngineInfo | None = None
        self._settings = settings
        self._command = command
        self._answers = Answers()
        self._child: _Child | None = None
        self._before = EngineLoad()  # counts of children that have ended
        self._load = EngineLoad()  # of the present one
        self._keeper: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """The child's process id."""
        return self._child.process.pid if self._child else None

    async def start(self) -> None:
        """Start the child and wait until it has loaded; its EdgeqwenError where it cannot."""
        child = await self._launch()
        self._keeper = asyncio.create_task(self._keep(child))

    def answer(self, request: Request) -> AsyncGenerator[Delta]:
        """Stream one answer: see the protocol."""
        return self._answers.stream(lambda number: self._ask(number, request), self._cancel)

    def load(self) -> EngineLoad:
        """How busy the child is, with the counts of those before it."""
        sums = {
            f.name: getattr(self._before, f.name) + getattr(self._load, f.name)
            for f in fields(EngineLoad)
            if f.name not in GAUGES
        }
        return replace(self._load, **sums)

    async def drain(self, seconds: float) -> None:
        """Take nothing new and wait for what runs."""
        self.state = "draining"
        await self._answers.ended(seconds)

    async def close(self) -> None:
        """End everything."""
        self.state = "draining"
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper
        self._answers.fail("the server stops")
        if self._child is not None:
            await asyncio.to_thread(self._child.close)

    def _ask(self, number: int, request: Request) -> None:
        if self._child is None or self.state != "ready":
            raise EngineDownError(f"the engine is {self.state}: " + ADVICE[self.state])
        self._child.send(ask=number, request=plain(request))

    def _cancel(self, number: int) -> None:
        if self._child is not None:
            self._child.send(cancel=number)

    async def _launch(self) -> _Child:
        """A child that has loaded; EdgeqwenError where it has not."""
        self._child = child = _Child(self._command, self._receive)
        child.send(load=plain(self._settings))
        try:
            self.info = await asyncio.shield(child.ready)
        except BaseException:
            await asyncio.to_thread(child.close)
            raise
        if self.state != "draining":
            self.state = "ready"
        return child

    async def _keep(self, child: _Child) -> None:
        """Start a new child whenever one has died."""
        backoff_s = BACKOFF_S
        while True:
            started = time.monotonic()
            why = await asyncio.shield(child.ended)
            logger.error("the engine's process died (%s); it is started again", why)
            self._before = replace(self.load(), restarts=self._before.restarts + 1)
            self._load = EngineLoad()
            self._answers.fail(f"the engine died ({why}) and is started again: ask again in a moment")
            if self.state == "draining":
                return
            self.state = "broken"
            if time.monotonic() - started > STEADY_S:
                backoff_s = BACKOFF_S
            child, backoff_s = await self._relaunch(backoff_s)

    async def _relaunch(self, backoff_s: float) -> tuple[_Child, float]:
        while True:
            await asyncio.sleep(backoff_s)
            backoff_s = min(2 * backoff_s, BACKOFF_MAX_S)
            try:
                return await self._launch(), backoff_s
            except (EdgeqwenError, OSError) as error:
                logger.error("the engine does not start: %s", error)  # noqa: TRY400 - its text says it all

    def _receive(self, data: dict[str, Any]) -> None:
        """Take a frame of events."""
        self._load = typed(EngineLoad, data["load"])
        self._answers.deliver((number, _event(event)) for number, event in data["answers"])


ADVICE = {
    "loading": "ask again when it is ready",
    "draining": "the server stops",
    "broken": "it died and is started again: ask again in a moment",
    "ready": "",
}


def _event(data: Any) -> Delta | EdgeqwenError:
    return typed_error(data["error"]) if "error" in data else typed(Delta, data)


class _Child:
    """The child's process with the threads that read from it and write to it; for one event loop."""

    def __init__(self, command: tuple[str, ...], receive: Callable[[dict[str, Any]], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._receive = receive
        self.ready: asyncio.Future[EngineInfo] = self._loop.create_future()
        self.ended: asyncio.Future[str] = self._loop.create_future()  # with the reason
        self.ready.add_done_callback(lambda ready: ready.cancelled() or ready.exception())  # nobody may be waiting
        self._outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._last_words: deque[str] = deque(maxlen=20)
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={**os.environ, "TOKENIZERS_PARALLELISM": "false"},
            # Ctrl-C goes to every process of a console; this one is told by its parent.
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
        )  # fmt: skip
        self._threads = [
            threading.Thread(target=work, name=f"edgeqwen-child{work.__name__}", daemon=True)
            for work in (self._listen, self._write, self._read)  # the last one joins the first
        ]
        for thread in self._threads:
            thread.start()

    def send(self, **data: Any) -> None:
        """Put a frame on its way; into nothing where the child has ended, which its readers are told."""
        self._outbox.put(frame(data))

    def close(self) -> None:
        """End the process: it has some seconds to do so itself."""
        self._outbox.put(None)
        try:
            self.process.wait(CLOSE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
        for thread in self._threads:
            thread.join()

    def _read(self) -> None:
        with _pipe(self.process.stdout) as pipe:
            try:
                for data in frames(pipe):
                    self._call(self._take, data)
            except EngineError as error:
                self._last_words.append(str(error))
                self.process.kill()  # what cannot be understood any more is of no use
        code = self.process.wait()
        self._threads[0].join(1)  # its last words
        self._outbox.put(None)
        self._call(self._end, f"exit code {code}")

    def _write(self) -> None:
        pipe = _pipe(self.process.stdin)
        with contextlib.suppress(OSError):
            while (data := self._outbox.get()) is not None:
                pipe.write(data)
                pipe.flush()
        with contextlib.suppress(OSError):
            pipe.close()

    def _listen(self) -> None:
        with _pipe(self.process.stderr) as pipe:
            for line in pipe:
                text = line.decode("utf-8", "replace").rstrip()
                if not _STACK.match(text):
                    self._last_words.append(text)
                logger.debug("engine: %s", text)

    def _call(self, work: Callable[[Any], None], argument: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
            self._loop.call_soon_threadsafe(work, argument)

    def _take(self, data: dict[str, Any]) -> None:
        try:
            if "ready" in data and not self.ready.done():
                self.ready.set_result(typed(EngineInfo, data["ready"]))
            elif "failed" in data and not self.ready.done():
                self.ready.set_exception(typed_error(data["failed"]))
            elif "answers" in data:
                self._receive(data)
        except (EngineError, KeyError, TypeError, ValueError) as error:
            self._last_words.append(f"a frame that cannot be read: {error}")
            self.process.kill()

    def _end(self, why: str) -> None:
        words = "; ".join(self._last_words)
        logger.debug("the engine's last words: %s", words)
        if not self.ready.done():
            self.ready.set_exception(EngineDownError(f"the engine's process ended while loading ({why}): {words}"))
        self.ended.set_result(why)


def _pipe(stream: Any) -> BinaryIO:
    pipe: BinaryIO = stream
    return pipe
