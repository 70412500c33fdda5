"""A server on a loopback socket in a thread, over scripted models or an engine that does what a test says."""

import asyncio
import contextlib
import json
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time

import httpx
from scripted_model import model_saying

from edgeqwen.server.app import application
from edgeqwen.server.connection import Connection
from edgeqwen.server.engine import LocalEngine
from edgeqwen.server.json_body import BodyReader
from edgeqwen.server.models import Models, Served
from edgeqwen.server.request import EngineInfo, EngineLoad, EngineSettings
from edgeqwen.server.run import bind, http_server
from edgeqwen.server.security import Access
from edgeqwen.types import Delta, Timings, Usage

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HELLO = [{"role": "user", "content": "Hello"}]
DONE = Delta(finish_reason="stop", usage=Usage(3, 2), timings=Timings())


class FakeEngine:
    """Answers with what `answer` yields; counts what was asked for and closed."""

    def __init__(self, answer=None, *, state="ready", thinks=True):
        self.state = state
        self.info = EngineInfo("Qwen3-0.6B", "fake", 4096, 151936, 4, thinks)
        self.asked, self.running = [], 0
        self.drained = self.closed = False
        self._answer = answer or self._hello

    async def _hello(self, _request):
        yield Delta(content="Hi")
        yield DONE

    async def start(self):
        self.state = "ready"

    async def answer(self, request):
        self.asked.append(request)
        self.running += 1
        try:
            async for delta in self._answer(request):
                yield delta
        finally:
            self.running -= 1

    def load(self):
        return EngineLoad(running=self.running, kv_capacity=100)

    async def drain(self, _seconds):
        self.drained, self.state = True, "draining"

    async def close(self):
        self.closed = True


def scripted(answer, *, parallel=4, waiting_max=64, **settings):
    """The real scheduler over a scripted model."""
    settings.setdefault("sequences", parallel + 4)
    return LocalEngine(
        EngineSettings("scripted", parallel=parallel, waiting_max=waiting_max),
        open_model=lambda _settings: model_saying(answer, **settings),
    )


class Server:
    """A running server: `client` speaks with it, `engine` is the first of its engines."""

    def __init__(self, engines, access, reader, names, answer_s):
        self._sock = bind("127.0.0.1", 0)
        self.port = self._sock.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.engine = engines[0]
        served = [Served(engine, (name,)) for engine, name in zip(engines, names, strict=True)]
        self.models = Models(tuple(served), 1)
        self.app = application(self.models, access, reader=reader, answer_s=answer_s)
        self._engines = engines
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    async def _run(self):
        self.loop = asyncio.get_running_loop()
        for engine in self._engines:
            if engine.state == "loading":
                await engine.start()
        self.uvicorn = http_server(self.app)
        serving = asyncio.create_task(self.uvicorn.serve(sockets=[self._sock]))
        while not self.uvicorn.started:  # noqa: ASYNC110 - uvicorn tells nobody
            await asyncio.sleep(0.001)
        self._ready.set()
        await serving
        for engine in self._engines:
            await engine.close()

    def __enter__(self):
        self._thread.start()
        assert self._ready.wait(60)
        self.client = httpx.Client(base_url=self.url, timeout=60, trust_env=False)
        return self

    def __exit__(self, *_error):
        self.client.close()
        self.uvicorn.should_exit = True
        self._thread.join(20)
        assert not self._thread.is_alive()
        self._sock.close()

    def post(self, body, path=CHAT, **options):
        return self.client.post(path, json=body, **options)

    def chat(self, **fields):
        """The answer to a chat, as JSON; it must be a 200."""
        response = self.post({"messages": HELLO, **fields})
        assert response.status_code == 200, response.text
        return response.json()

    def stream(self, path=CHAT, **fields):
        """The chunks of a stream."""
        body = {"stream": True, **({"messages": HELLO} if path == CHAT else {}), **fields}
        with self.client.stream("POST", path, json=body) as response:
            assert response.status_code == 200, response.read()
            assert response.headers["content-type"].startswith("text/event-stream")
            return events(response.read().decode())

    def connect(self):
        return socket.create_connection(("127.0.0.1", self.port), 20)

    def raw(self, data):
        """Everything that comes back for these bytes, until the server closes."""
        with self.connect() as sock:
            sock.sendall(data)
            return b"".join(iter(lambda: sock.recv(1 << 16), b""))


class Command:
    """`edgeqwen serve` as a process."""

    def __init__(self, *arguments):
        # A pipe that nobody reads would stop the server.
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - it is open as long as the process
        self.process = subprocess.Popen(
            [sys.executable, "-c", "from edgeqwen.cli import main; main()", "serve", *arguments, "--port", "0"],
            stdout=subprocess.PIPE, stderr=self._log, text=True,
        )  # fmt: skip
        self.greeting = [self.process.stdout.readline() for _ in range(3)]
        found = re.match(r"base_url: (http://\S+)/v1 ", self.greeting[0])
        assert found, self.greeting[0] + self.log()
        self.client = httpx.Client(base_url=found[1], timeout=60, trust_env=False)

    def __enter__(self):
        return self

    def __exit__(self, *_error):
        self.client.close()
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        self._log.close()

    def log(self):
        """All of stderr so far."""
        self._log.seek(0)
        return self._log.read()

    def end(self):
        """Wait for its end; what it still printed."""
        self.process.wait(30)
        return self.process.stdout.read()


def serving(*engines, access=None, reader=None, names=None, answer_s=None):
    engines = engines or (FakeEngine(),)
    names = names or [f"m{i}" for i in range(len(engines))]
    return Server(engines, access or Access(), reader or BodyReader(), names, answer_s)


def events(text):
    """The data of server-sent events; [DONE] must be the last."""
    frames = [frame for frame in text.split("\n\n") if frame and not frame.startswith(":")]
    assert all(frame.startswith("data: ") for frame in frames)
    assert frames[-1] == "data: [DONE]", frames[-1]
    return [json.loads(frame.removeprefix("data: ")) for frame in frames[:-1]]


def wait_until(true, seconds=60):
    """Wait for another thread without sleeping longer than needed."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen"
        threading.Event().wait(0.005)


@contextlib.contextmanager
def limits(**values):
    """Other limits of a connection, for a test's server."""
    before = {name: getattr(Connection, name) for name in values}
    for name, value in values.items():
        setattr(Connection, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(Connection, name, value)


def head(path=CHAT, length=None, method="POST", host="127.0.0.1", kind="application/json"):
    """The head of a request, as bytes."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", f"Content-Type: {kind}"]
    if length is not None:
        lines.append(f"Content-Length: {length}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode()
