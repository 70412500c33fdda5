"""A server from its start to its end: the port, the engines, HTTP, and what happens when it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import FrameType
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from edgeqwen.errors import RequestError
from edgeqwen.server.app import application
from edgeqwen.server.connection import MAX_CONNECTIONS, MAX_HEAD_BYTES, Connection
from edgeqwen.server.models import Models, Served, names_of, with_aliases
from edgeqwen.server.request import Engine, EngineSettings
from edgeqwen.server.security import Access, check_access

logger = logging.getLogger("edgeqwen.server")
BACKLOG = 512
KEEP_ALIVE_S = 30  # of a connection without a request
LEAVE_S = 5  # for the last frames to reach their readers
SPARE_FILES = 64  # descriptors that are no client's
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """What is served and to whom. A model's engine is loaded in a process of its own, unless `isolate` is off."""

    models: tuple[EngineSettings, ...]
    aliases: Mapping[str, str] = field(default_factory=dict)
    host: str = "127.0.0.1"
    port: int = 8000  # 0: any that is free
    access: Access = field(default_factory=Access)
    isolate: bool = True
    answer_s: float | None = None  # that an answer may take, its time in the queue included; then it is cut
    drain_s: float = 30.0  # that running answers have when the server is told to stop


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens, and the models it has."""

    base_url: str  # for OpenAI's clients
    models: tuple[str, ...]


def serve(
    settings: ServerSettings,
    *,
    ready: Callable[[Address], None] | None = None,
    progress: Progress | None = None,
) -> None:
    """Serve until SIGTERM or Ctrl-C; returns when all answers have ended or were told that they will not.

    The port is taken first, then models that are not converted yet are, then they are loaded, while /health says
    503; `ready` is called when they are. RequestError for settings that cannot be used and a port that is taken,
    EdgeqwenError where a model does not load.
    """
    named = with_aliases((model.model for model in settings.models), settings.aliases)
    check_access(settings.host, settings.access)
    with contextlib.closing(bind(settings.host, settings.port)) as sock:
        paths = [_located(model, progress) for model in settings.models]
        asyncio.run(_Run(settings, sock, ready).run(paths, [aliases for _, aliases in named]))


def bind(host: str, port: int) -> socket.socket:
    """A socket of this address; RequestError says what is in the way."""
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise RequestError(f"--host {host}: no such address here ({error})") from None
    family, kind, protocol, _, address = found[0]
    sock = socket.socket(family, kind, protocol)
    try:
        if sys.platform != "win32":  # there it would let two servers have one port
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
    except OSError as error:
        sock.close()
        raise RequestError(_why_not(host, port, error)) from None
    sock.setblocking(False)  # noqa: FBT003 - its signature
    return sock


def http_server(app: ASGIApp) -> uvicorn.Server:
    """The HTTP server with our limits, without its logs and its signals."""
    config = uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        lifespan="off",
        loop="asyncio",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=LEAVE_S,
        h11_max_incomplete_event_size=MAX_HEAD_BYTES,
    )
    return _Uvicorn(config)


class _Uvicorn(uvicorn.Server):
    """uvicorn dies of the signal that ended it; who runs it here decides about signals."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Run:
    """One run of a server on its event loop."""

    def __init__(self, settings: ServerSettings, sock: socket.socket, ready: Callable[[Address], None] | None) -> None:
        self._settings = settings
        self._sock = sock
        self._ready = ready
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()  # a second signal: nothing is waited for

    async def run(self, paths: Sequence[EngineSettings], aliases: Sequence[tuple[str, ...]]) -> None:
        models = Models(
            tuple(
                Served(_engine(path, isolate=self._settings.isolate), names_of(given.model), names)
                for path, given, names in zip(paths, self._settings.models, aliases, strict=True)
            ),
            int(time.time()),
        )
        access = replace(
            self._settings.access, allowed_hosts=(*self._settings.access.allowed_hosts, self._settings.host)
        )
        server = http_server(application(models, access, answer_s=self._settings.answer_s))
        Connection.max_connections = _connections()
        with self._signals(asyncio.get_running_loop()):
            serving = asyncio.create_task(server.serve(sockets=[self._sock]))
            try:
                await self._until_stopped(models, serving)
            finally:
                await self._end(models, server, serving)

    async def _until_stopped(self, models: Models, serving: asyncio.Task[None]) -> None:
        stop, loading = asyncio.create_task(self._stop.wait()), asyncio.create_task(self._load(models))
        waiting: set[asyncio.Task[Any]] = {stop, serving}
        try:
            await asyncio.wait({*waiting, loading}, return_when=asyncio.FIRST_COMPLETED)
            if loading.done():
                loading.result()
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (stop, loading):
                task.cancel()
            await asyncio.gather(stop, loading, return_exceptions=True)

    async def _load(self, models: Models) -> None:
        """One after the other: each plans with the memory that those before it have left."""
        for served in models.served:
            started = time.perf_counter()
            await served.engine.start()
            logger.info("%s is loaded: %.1f s", served.name, time.perf_counter() - started)
        if self._ready is not None:
            self._ready(Address(self._base_url(), tuple(models.identity(served) for served in models.served)))

    async def _end(self, models: Models, server: uvicorn.Server, serving: asyncio.Task[None]) -> None:
        engines = [served.engine for served in models.served]
        drain = asyncio.create_task(_drain(engines, self._settings.drain_s))
        hurry = asyncio.create_task(self._hurry.wait())
        await asyncio.wait({drain, hurry}, return_when=asyncio.FIRST_COMPLETED)
        drain.cancel()
        hurry.cancel()
        server.should_exit = True
        server.force_exit = self._hurry.is_set()
        await asyncio.gather(*(engine.close() for engine in engines), serving, drain, hurry, return_exceptions=True)

    @contextlib.contextmanager
    def _signals(self, loop: asyncio.AbstractEventLoop) -> Iterator[None]:
        """The first SIGTERM or Ctrl-C ends the run in good order, the second at once."""

        def stop() -> None:
            (self._hurry if self._stop.is_set() else self._stop).set()

        def take(_number: int, _frame: FrameType | None) -> None:
            loop.call_soon_threadsafe(stop)

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, take) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _base_url(self) -> str:
        host, port = self._sock.getsockname()[:2]
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - what a client here would use
        return f"http://[{host}]:{port}/v1" if ":" in host else f"http://{host}:{port}/v1"


def _located(model: EngineSettings, progress: Progress | None) -> EngineSettings:
    """The same model by its path: a hub id or `nano` is converted here, where progress can be shown."""
    from edgeqwen.catalog import locate  # noqa: PLC0415 - it reaches the converters

    path = locate(
        model.model, type=model.type, engine=model.engine, offline=model.offline, trust_template=model.trust_template,
        progress=progress,
    )  # fmt: skip
    return replace(model, model=str(path))


async def _drain(engines: Sequence[Engine], seconds: float) -> None:
    await asyncio.gather(*(engine.drain(seconds) for engine in engines))


def _engine(settings: EngineSettings, *, isolate: bool) -> Engine:
    from edgeqwen.server.engine import LocalEngine  # noqa: PLC0415 - the child's imports are not the parent's
    from edgeqwen.server.isolated import IsolatedEngine  # noqa: PLC0415

    return IsolatedEngine(settings) if isolate else LocalEngine(settings)


def _connections() -> int:
    """How many connections the system lets a process have, and we."""
    if sys.platform == "win32":
        return MAX_CONNECTIONS
    import resource  # noqa: PLC0415 - not on Windows

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_CONNECTIONS + SPARE_FILES
    if soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return max(8, min(MAX_CONNECTIONS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - SPARE_FILES))


def _why_not(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} is taken on {host}: another server runs there; end it, or choose with --port (0: any)"
    if error.errno in {errno.EACCES, errno.EPERM}:
        return f"port {port} is not ours to take: ports below 1024 are the system's; choose with --port"
    return f"--host {host} --port {port}: {error.strerror or error}"
