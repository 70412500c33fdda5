"""Hostile clients: large, deep, slow, half-open and many; each gets its stated answer and nobody else notices."""

import asyncio
import contextlib
import gzip
import json
import re
import resource
import socket
import threading
import time

import psutil
import pytest
from server_kit import CHAT, DONE, HELLO, FakeEngine, head, limits, scripted, serving, wait_until

from edgeqwen.errors import BusyError, ContextOverflowError, EngineDownError, EngineError, RequestError
from edgeqwen.generation import check_config
from edgeqwen.server import answering
from edgeqwen.server.failures import failure_of
from edgeqwen.server.json_body import MAX_BODY_BYTES, BodyReader
from edgeqwen.types import Delta, GenerationConfig


@pytest.fixture(scope="module")
def server():
    with serving() as running:
        yield running


def status(reply):
    return int(reply.split(b" ", 2)[1])


def response(sock):
    """One whole response: its head and as much body as that says."""
    reply = b""
    while b"\r\n\r\n" not in reply:
        reply += sock.recv(4096) or pytest.fail(f"the connection was closed after {reply!r}")
    top, _, body = reply.partition(b"\r\n\r\n")
    length = int(re.search(rb"content-length: (\d+)", top)[1])
    while len(body) < length:
        body += sock.recv(4096)
    return top + b"\r\n\r\n" + body


def is_well(server):
    assert server.chat()["choices"][0]["message"]["content"] == "Hi"


@pytest.mark.parametrize("size", [MAX_BODY_BYTES + 1, 10 << 20])
def test_a_large_body_is_refused(server, size):
    response = server.client.post(CHAT, content=b" " * size, headers={"content-type": "application/json"})
    assert response.status_code == 413
    assert response.json()["error"]["code"] == "body_too_large"
    is_well(server)


def test_a_large_body_of_unknown_length_is_refused(server):
    def parts():
        for _ in range(160):
            yield b" " * 65536

    response = server.client.post(CHAT, content=parts(), headers={"content-type": "application/json"})
    assert response.status_code == 413


def test_many_large_bodies_at_a_time(server):
    reader = BodyReader()
    reader._held = 64 << 20
    with serving(reader=reader) as full:
        response = full.post({"messages": HELLO})
        assert response.status_code == 503
        assert response.headers["retry-after"]
        reader._held = 0
        is_well(full)
        assert reader._held == 0


@pytest.mark.parametrize(
    "kind", ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"]
)
def test_a_body_that_is_no_json_by_its_header(server, kind):
    response = server.client.post(CHAT, content=b"{}", headers={"content-type": kind})
    assert response.status_code == 415


def test_a_packed_body_is_refused(server):
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    response = server.client.post(CHAT, content=gzip.compress(b" " * (1 << 20)), headers=headers)
    assert (response.status_code, response.json()["error"]["code"]) == (415, "unsupported_media_type")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b'{"messages": ' + b"[" * 100_000,
        b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
        b"\xff" * 100,
    ],
)
def test_bad_json_is_a_400(server, content):
    response = server.client.post(CHAT, content=content, headers={"content-type": "application/json"})
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"
    is_well(server)


@pytest.mark.parametrize("path", ["/nope", "/v1", "/", "/v1/chat/completions/x", "/%00", "/..%2f..%2fetc/passwd"])
def test_no_such_path(server, path):
    response = server.client.get(path)
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "not_found"


def test_another_method(server):
    for method in ("GET", "PUT", "DELETE", "TRACE"):
        response = server.client.request(method, CHAT)
        assert response.status_code == 405
        assert response.headers["allow"] == "POST"
        assert response.json()["error"]["code"] == "method_not_allowed"


@pytest.mark.parametrize(
    "data",
    [b"\x00" * 100 + b"\r\n\r\n", b"GET / HTTP/x\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
     b"GET /health HTTP/1.1\r\nHost: a b\r\nX: " + b"y" * 100_000,
     head(length=10)[:-2] + b"Content-Length: 11\r\n\r\n" + b"x" * 11,
     head()[:-2] + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"],
)  # fmt: skip
def test_what_is_no_http_is_closed(server, data):
    with contextlib.suppress(ConnectionResetError):
        reply = server.raw(data)
        assert not reply or status(reply) == 400
    is_well(server)


# Time


def test_a_slow_head_is_given_up():
    with limits(head_s=0.3), serving() as server:
        started = time.monotonic()
        with server.connect() as sock:
            sock.sendall(head(length=2)[:-10])
            reply = response(sock)
        assert status(reply) == 408
        assert json.loads(reply.partition(b"\r\n\r\n")[2])["error"]["code"] == "request_timeout"
        assert 0.2 < time.monotonic() - started < 5
        with server.connect() as silent:
            assert status(response(silent)) == 408
        is_well(server)


def test_a_head_that_drips_is_given_up():
    with limits(head_s=0.4), serving() as server, server.connect() as sock:
        ended = threading.Event()

        def drip():
            with contextlib.suppress(OSError):
                while not ended.wait(0.02):
                    sock.sendall(b"x")

        sock.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: ")
        dripping = threading.Thread(target=drip)
        dripping.start()
        with contextlib.suppress(ConnectionResetError):
            assert status(response(sock)) == 408
        ended.set()
        dripping.join()


def test_a_second_request_has_the_same_time():
    with limits(head_s=0.3), serving() as server, server.connect() as sock:
        sock.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert status(response(sock)) == 200
        sock.sendall(b"GET /hea")
        assert status(response(sock)) == 408


def test_a_slow_body_is_given_up():
    with serving(reader=BodyReader(seconds=0.3)) as server, server.connect() as sock:
        sock.sendall(head(length=100) + b'{"mess')
        reply = response(sock)
        assert status(reply) == 408
        assert b"body_timeout" in reply
        is_well(server)


def test_a_body_that_nobody_waits_for_is_given_up():
    with limits(body_s=0.3), serving() as server, server.connect() as sock:
        sock.sendall(head("/nope", length=100) + b"{")
        assert status(response(sock)) == 404
        with contextlib.suppress(ConnectionResetError):
            assert sock.recv(4096) == b""


def endless(size=1):
    async def answer(_request):
        while True:
            yield Delta(content="a" * size)
            await asyncio.sleep(0)

    return FakeEngine(answer)


def test_a_reader_that_stopped_reading_is_dropped():
    body = json.dumps({"messages": HELLO, "stream": True}).encode()
    with limits(write_s=0.3), serving(endless(1 << 16)) as server, server.connect() as sock:
        sock.sendall(head(length=len(body)) + body)
        wait_until(lambda: server.engine.running == 1)
        wait_until(lambda: server.engine.running == 0)


def stuck():
    async def answer(_request):
        await asyncio.Event().wait()
        yield DONE

    return FakeEngine(answer)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("engine", [endless, stuck])
@pytest.mark.parametrize("leave", ["close", "reset", "half"])
def test_an_answer_ends_when_its_client_leaves(stream, engine, leave):
    body = json.dumps({"messages": HELLO, "stream": stream}).encode()
    with serving(engine()) as server:
        sock = server.connect()
        sock.sendall(head(length=len(body)) + body)
        wait_until(lambda: server.engine.running == 1)
        if leave == "reset":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        if leave == "half":
            sock.shutdown(socket.SHUT_WR)
        else:
            sock.close()
        wait_until(lambda: server.engine.running == 0)
        sock.close()


def test_a_client_that_leaves_with_its_body_unfinished(server):
    with server.connect() as sock:
        sock.sendall(head(length=100) + b'{"mess')
    is_well(server)


def test_aborted_streams_leave_nothing():
    """The real scheduler, streams left at every stage of their answers."""
    body = json.dumps({"messages": HELLO, "stream": True, "max_tokens": 200}).encode()
    with serving(scripted(lambda ids: len(ids) % 50 + 300)) as server:
        process = psutil.Process()
        for number in range(200):
            with server.connect() as sock:
                sock.sendall(head(length=len(body)) + body)
                if number % 3:
                    sock.recv(1 + number)
            if number == 50:
                before = process.memory_info().rss
        wait_until(lambda: server.engine.load().running == 0)
        wait_until(lambda: not server.uvicorn.server_state.tasks)
        assert process.memory_info().rss - before < 20 << 20
        assert server.chat(max_tokens=5)["usage"]["completion_tokens"] == 5


def test_an_answer_that_takes_too_long_is_cut():
    def slow(ids):
        threading.Event().wait(0.02)
        return 300 + len(ids)

    with serving(scripted(slow), answer_s=0.3) as server:
        choice = server.chat(enable_thinking=False)["choices"][0]
    assert choice["finish_reason"] == "length"
    assert choice["message"]["content"]


# Numbers


def test_500_connections_at_a_time():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    request = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    try:
        with serving() as server, contextlib.ExitStack() as stack:
            socks = [stack.enter_context(server.connect()) for _ in range(500)]
            for sock in socks:
                sock.sendall(request)
            assert [status(response(sock)) for sock in socks] == [200] * 500
            is_well(server)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_one_connection_too_many():
    with limits(max_connections=2), serving() as server, server.connect() as one, server.connect() as two:
        request = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
        for sock in (one, two):
            sock.sendall(request)
            assert status(response(sock)) == 200
        with server.connect() as three:
            reply = response(three)
            assert status(reply) == 503
            assert b"retry-after" in reply
        one.sendall(request)
        assert status(response(one)) == 200


def test_a_full_queue_says_when_to_come_back():
    gate = threading.Event()

    def talk(ids):
        if len(ids) > 20:
            gate.wait(20)
        return 300 + len(ids)

    body = {"messages": HELLO, "stream": True}
    with (
        serving(scripted(talk, parallel=1, waiting_max=0)) as server,
        server.client.stream("POST", CHAT, json=body) as running,
    ):
        lines = running.iter_lines()
        next(lines)
        refused = server.post({"messages": HELLO})
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["code"] == "queue_full"
        gate.set()


# Failures of the engine


def failing(error, after=()):
    async def answer(_request):
        for delta in after:
            yield delta
        raise error

    return FakeEngine(answer)


@pytest.mark.parametrize(
    ("error", "wanted", "code"),
    [
        (BusyError(9, 7), 429, "queue_full"),
        (EngineDownError("it is loading"), 503, "engine_down"),
        (ContextOverflowError(5000, 4096), 400, "context_length_exceeded"),
        (EngineError("the engine failed"), 500, "engine_error"),
        (RuntimeError("secret"), 500, "internal_error"),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
def test_an_error_before_the_first_piece_is_a_status(error, wanted, code, stream):
    with serving(failing(error)) as server:
        response = server.post({"messages": HELLO, "stream": stream})
        assert response.status_code == wanted
        assert response.json()["error"]["code"] == code
        assert ("retry-after" in response.headers) == (wanted in {429, 503})
        assert "secret" not in response.text
        assert "Traceback" not in response.text
        if code == "context_length_exceeded":
            said = response.json()["error"]
            assert (said["n_prompt_tokens"], said["n_ctx"]) == (5000, 4096)
            assert "5000" in said["message"]
            assert "larger --context" in said["message"]  # the server's, not the library's


@pytest.mark.parametrize("error", [EngineDownError("the engine died"), RuntimeError("secret")])
def test_an_error_after_it_is_a_frame(error):
    with serving(failing(error, [Delta(content="a")])) as server:
        response = server.post({"messages": HELLO, "stream": True})
        *_, last = response.text.strip().split("\n\n")
        assert json.loads(last.removeprefix("data: "))["error"]["code"] in {"engine_down", "internal_error"}
        assert "secret" not in response.text
        assert "[DONE]" not in response.text


def test_one_choice_that_fails_ends_all():
    async def answer(request):
        yield Delta(content="a")
        if request.config.seed == 1:
            raise EngineDownError("the engine died")
        await asyncio.Event().wait()

    with serving(FakeEngine(answer)) as server:
        assert server.post({"messages": HELLO, "n": 3, "seed": 0}).status_code == 503
        wait_until(lambda: server.engine.running == 0)


def test_silence_is_filled_with_comments(monkeypatch):
    monkeypatch.setattr(answering, "PAUSE_S", 0.05)

    async def answer(_request):
        await asyncio.sleep(0.3)
        raise EngineDownError("the engine died")
        yield

    with serving(FakeEngine(answer)) as server:
        text = server.post({"messages": HELLO, "stream": True}).text
        assert text.startswith(": waiting\n\n: waiting\n\n")
        assert "engine_down" in text


def test_a_bias_for_an_id_that_there_is_not_names_its_field():
    with pytest.raises(RequestError) as caught:
        check_config(GenerationConfig(logit_bias={99999: 1.0}), 4096)
    assert failure_of(caught.value).param == "logit_bias[99999]"
