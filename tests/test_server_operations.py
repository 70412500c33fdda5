"""Running a server: health, metrics, docs, logs, and the command from its start to SIGTERM under load."""

import asyncio
import io
import json
import logging
import re
import signal
import socket
import threading
import time
from html.parser import HTMLParser

import httpx
import pytest
from click.testing import CliRunner
from scripted_model import THOUGHT, TOKENIZER, TURN
from server_kit import CHAT, DONE, HELLO, TEXT, Command, FakeEngine, events, scripted, serving, wait_until

from edgeqwen.cli import edgeqwen
from edgeqwen.errors import RequestError
from edgeqwen.server import run
from edgeqwen.server.logs import log_to
from edgeqwen.server.openai_fields import CHAT as CHAT_FIELDS
from edgeqwen.server.request import EngineSettings
from edgeqwen.server.run import ServerSettings, bind, serve
from edgeqwen.types import Delta


def test_health_and_readiness():
    engine = FakeEngine()
    with serving(engine) as server:
        states = {
            "ready": (200, "healthy", 200, "ready"),
            "loading": (503, "loading", 503, "loading"),
            "broken": (503, "broken", 503, "broken"),
            "draining": (200, "healthy", 503, "draining"),
        }
        for state, wanted in states.items():
            engine.state = state
            health, ready = server.client.get("/health"), server.client.get("/ready")
            assert (health.status_code, health.json()["status"]) == wanted[:2]
            assert (ready.status_code, ready.json()["status"]) == wanted[2:]
        assert server.client.head("/health").status_code == 200


def test_one_engine_that_is_not_well_is_enough():
    sick = FakeEngine(state="broken")
    with serving(FakeEngine(), sick) as server:
        assert server.client.get("/health").status_code == 503


def test_while_it_loads_requests_are_told_to_wait():
    engine = FakeEngine()
    info, engine.info = engine.info, None
    with serving(engine, names=["qwen3-0.6b-q4_0"]) as server:
        refused = server.post({"model": "Qwen3-0.6B", "messages": HELLO})
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
        assert server.client.get("/v1/models").json()["data"][0]["id"] == "qwen3-0.6b-q4_0"
        engine.info = info
        assert server.chat(model="Qwen3-0.6B")


def metric(text, name, **labels):
    wanted = [f'{key}="{value}"' for key, value in labels.items()]
    lines = [line for line in text.splitlines() if line.startswith(name) and all(label in line for label in wanted)]
    assert len(lines) == 1, (name, lines)
    return float(lines[0].split()[-1])


def test_metrics_count_what_happened():
    with serving(scripted(THOUGHT)) as server:
        first, second = server.chat(), server.chat()
        last = server.stream(TEXT, prompt=TURN, max_tokens=3, stream_options={"include_usage": True})[-1]
        server.post({"model": 'a"}\n', "messages": HELLO})
        server.client.get('/nope"}')
        server.client.get("/health", headers={"host": "evil.example"})
        text = server.client.get("/metrics").text
    usages = [answer["usage"] for answer in (first, second, last)]
    cached = sum(usage["prompt_tokens_details"]["cached_tokens"] for usage in usages)
    assert cached > 0
    assert metric(text, "edgeqwen_prompt_tokens_cached_total", model="scripted") == cached
    assert metric(text, "edgeqwen_answers_total", model="scripted", finish_reason="stop") == 2
    assert metric(text, "edgeqwen_requests_total", route=CHAT, status="200", outcome="ok") == 2
    assert metric(text, "edgeqwen_requests_total", route=CHAT, status="404", outcome="model_not_found") == 1
    assert metric(text, "edgeqwen_requests_total", route="other", status="404", outcome="not_found") == 1
    assert metric(text, "edgeqwen_requests_total", route="/health", status="403", outcome="host_not_allowed") == 1
    assert metric(text, "edgeqwen_first_token_seconds_count", model="scripted") == 3
    assert metric(text, "edgeqwen_token_seconds_count", model="scripted") == 3
    assert metric(text, "edgeqwen_ready", model="scripted") == 1
    assert (
        0
        < metric(text, "edgeqwen_kv_cache_tokens", model="scripted")
        < metric(text, "edgeqwen_kv_cache_capacity_tokens")
    )
    assert metric(text, "edgeqwen_running_answers", model="scripted") == 0


def test_two_servers_do_not_mix_their_figures():
    with serving() as one, serving() as other:
        one.chat()
        assert 'outcome="ok"' in one.client.get("/metrics").text
        assert CHAT not in other.client.get("/metrics").text


class _Links(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        self.found += [(tag, value) for name, value in attrs if name in {"src", "href"}]
        assert tag not in {"script", "iframe", "object"}


def test_the_docs_need_no_network():
    with serving() as server:
        page = server.client.get("/docs")
        document = server.client.get("/openapi.json").json()
    links = _Links()
    links.feed(page.text)
    assert links.found == [("a", "/openapi.json")]
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert all(f"<code>{name}</code>" in page.text for name in CHAT_FIELDS)
    assert document["openapi"].startswith("3.1")
    assert set(document["components"]["schemas"]["ChatRequest"]["properties"]) == set(CHAT_FIELDS)
    routes = {route.path.replace(":path", "") for route in server.app.routes}
    assert set(document["paths"]) == routes - {"/docs", "/openapi.json"}
    references = set(re.findall(r"#/components/schemas/(\w+)", json.dumps(document)))
    assert references <= set(document["components"]["schemas"])


# Logs


@pytest.fixture
def log():
    stream, loggers = io.StringIO(), [logging.getLogger(name) for name in ("edgeqwen", "uvicorn.error")]
    before = [(logger.handlers[:], logger.level, logger.propagate) for logger in loggers]
    yield stream
    for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
        logger.handlers[:], logger.propagate = handlers, propagate
        logger.setLevel(level)


def test_a_line_of_json_for_each_request(log):
    log_to(log, as_json=True)
    with serving(scripted(THOUGHT)) as server:
        answer = server.chat(messages=[{"role": "user", "content": "a secret"}])
        server.client.get("/nope%0D%0Ax", headers={"authorization": "Bearer also-secret"})
    chat, other = [line for line in map(json.loads, log.getvalue().splitlines()) if line["message"] == "request"]
    assert (chat["id"], chat["status"], chat["outcome"]) == (answer["id"], 200, "ok")
    assert (chat["method"], chat["path"], chat["finish"]) == ("POST", CHAT, "stop")
    assert chat["completion_tokens"] == answer["usage"]["completion_tokens"]
    assert 0 < chat["first_token_s"] <= chat["seconds"]
    assert (other["status"], other["outcome"]) == (404, "not_found")
    assert "secret" not in log.getvalue()
    assert "Two and two" not in log.getvalue()


def test_a_line_of_text_for_each_request(log):
    log_to(log, as_json=False)
    with serving() as server:
        server.chat()
        server.client.get("/nope%0Ainjected")
    first, second = [line for line in log.getvalue().splitlines() if "GET" in line or "POST" in line]
    assert re.fullmatch(rf"\d\d:\d\d:\d\d POST {CHAT} 200 \d\.\d\ds .*finish=stop.*", first)
    assert re.fullmatch(r"\d\d:\d\d:\d\d GET /nope\\ninjected 404 not_found .*", second)


def test_a_failure_is_logged_with_its_trace_and_told_without(log):
    log_to(log, as_json=True)

    async def answer(_request):
        raise RuntimeError("secret")
        yield

    with serving(FakeEngine(answer)) as server:
        response = server.post({"messages": HELLO})
    assert response.status_code == 500
    (line,) = [line for line in map(json.loads, log.getvalue().splitlines()) if "exception" in line]
    assert "RuntimeError: secret" in line["exception"]
    assert response.headers["x-request-id"] in line["message"]


# The command


def test_the_command_says_what_is_wrong(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(RequestError, match=f"port {port} is taken on 127.0.0.1: .*--port"):
            serve(ServerSettings((EngineSettings("nano"),), port=port))
    with pytest.raises(RequestError, match="api-key-file"):
        serve(ServerSettings((EngineSettings("nano"),), host="0.0.0.0"))
    with pytest.raises(RequestError, match="no such address"):
        bind("no such host", 0)
    with pytest.raises(RequestError, match="no model"):
        serve(ServerSettings((EngineSettings("no-such-model"),), port=0))
    with pytest.raises(RequestError, match="named twice"):
        serve(ServerSettings((EngineSettings("nano"), EngineSettings("nano")), port=0))
    (tmp_path / "broken.gguf").write_bytes(b"GGUF")
    with pytest.raises(Exception, match=r"broken\.gguf"):
        serve(ServerSettings((EngineSettings(str(tmp_path / "broken.gguf")),), port=0, isolate=False))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "Missing argument"),
        (["nano", "--port", "99999"], "--port"),
        (["nano", "--alias", "=x"], "NAME=ARTIFACT"),
        (["nano", "--api-key-file", "/nope"], "api-key-file"),
    ],
)
def test_usage_errors(arguments, text):
    result = CliRunner().invoke(edgeqwen, ["serve", *arguments])
    assert result.exit_code == 2
    assert text in result.output


def test_the_command_serves_until_sigterm(nano_artifact, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("a-token-of-ours\n")
    with Command(str(nano_artifact("q8_0")), "--api-key-file", str(keys), "--alias", "small=", "--log-json") as command:
        assert "Authorization: Bearer $TOKEN" in command.greeting[1]
        assert "a-token-of-ours" not in "".join(command.greeting)
        assert command.client.get("/ready").json() == {"status": "ready"}
        headers = {"authorization": "Bearer a-token-of-ours"}
        body = {"model": "small", "messages": [{"role": "user", "content": "What is 2 + 5?"}], "temperature": 0}
        answer = command.client.post(CHAT, json=body, headers=headers).json()
        assert answer["choices"][0]["message"]["content"] == "7"
        assert command.client.post(CHAT, json=body).status_code == 401
        command.process.send_signal(signal.SIGTERM)
        assert command.end() == ""
        log = command.log()
    assert command.process.returncode == 0
    assert [json.loads(line)["status"] for line in log.splitlines() if '"request"' in line] == [200, 200, 401]


ENDS = {str(TOKENIZER.id(token)): -100 for token in ("<|im_end|>", "<|endoftext|>")}
# Drawn from all tokens, it never repeats itself so long that it is ended for that.
LONG = {
    "messages": HELLO, "stream": True, "temperature": 3, "top_k": 0, "top_p": 1, "seed": 7, "max_tokens": 4000,
    "logit_bias": ENDS,
}  # fmt: skip


@pytest.mark.parametrize("isolate", [[], ["--no-isolate"]])
def test_sigterm_under_load(nano_artifact, isolate):
    """What runs gets its time, then an error frame; what comes is refused; the exit code is 0."""
    arguments = [str(nano_artifact("q8_0")), "--parallel", "2", "--drain", "1", *isolate]
    texts, started = [], threading.Semaphore(0)

    def read(client):
        with client.stream("POST", CHAT, json=LONG) as response:
            parts = []
            for part in response.iter_text():
                parts.append(part)
                started.release()
            texts.append("".join(parts))

    with Command(*arguments) as command:
        readers = [threading.Thread(target=read, args=(command.client,)) for _ in range(2)]
        for reader in readers:
            reader.start()
        for _ in range(20):
            started.acquire(timeout=60)
        command.process.send_signal(signal.SIGTERM)
        wait_until(lambda: command.client.get("/ready").status_code == 503)
        refused = command.client.post(CHAT, json={"messages": HELLO})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_down")
        for reader in readers:
            reader.join(20)
        command.end()
    assert command.process.returncode == 0
    assert len(texts) == 2
    for text in texts:
        last = text.strip().split("\n\n")[-1]
        assert last.startswith('data: {"error"'), text[-2000:]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "engine_down"


def test_a_second_signal_waits_for_nothing(nano_artifact):
    with (
        Command(str(nano_artifact("q8_0")), "--drain", "600", "--no-isolate") as command,
        command.client.stream("POST", CHAT, json=LONG) as response,
    ):
        lines = response.iter_lines()
        next(lines)
        command.process.send_signal(signal.SIGINT)
        wait_until(lambda: command.client.get("/ready").status_code == 503)
        command.process.send_signal(signal.SIGINT)
        started = time.monotonic()
        assert command.process.wait(20) == 0
        assert time.monotonic() - started < 15
        del lines


def test_the_library_call(nano_artifact, monkeypatch):
    """serve() in a thread, with its callbacks; it ends when it is told to."""
    addresses, runs = [], []

    class Stoppable(run._Run):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            runs.append((self, asyncio.get_event_loop_policy()))

    monkeypatch.setattr(run, "_Run", Stoppable)
    loops = []
    ready = threading.Event()

    def told(address):
        addresses.append(address)
        loops.append(asyncio.get_running_loop())
        ready.set()

    settings = ServerSettings((EngineSettings(str(nano_artifact("q8_0"))),), {"mine": ""}, port=0, isolate=False)
    thread = threading.Thread(target=serve, args=(settings,), kwargs={"ready": told})
    thread.start()
    assert ready.wait(30)
    assert addresses[0].models == ("nano",)
    answer = httpx.post(
        f"{addresses[0].base_url}/chat/completions", json={"model": "mine", "messages": HELLO, "max_tokens": 3}
    )
    assert answer.status_code == 200
    stream = httpx.post(
        f"{addresses[0].base_url}/chat/completions", json={"messages": HELLO, "max_tokens": 3, "stream": True}
    )
    assert events(stream.text)[-1]["choices"][0]["finish_reason"] == "length"
    loops[0].call_soon_threadsafe(runs[0][0]._stop.set)
    thread.join(20)
    assert not thread.is_alive()


def test_an_engine_that_does_not_load_ends_the_server(nano_artifact, tmp_path):
    weights = next(path for path in nano_artifact("q8_0").iterdir() if path.suffix == ".gguf")
    settings = EngineSettings(str(weights), context_length=10**9)
    with pytest.raises(RequestError, match="context_length"):
        serve(ServerSettings((settings,), port=0))


def test_a_fake_engine_is_drained_and_closed():
    async def slow(_request):
        yield Delta(content="a")
        yield DONE

    engine = FakeEngine(slow)
    with serving(engine) as server:
        server.chat()
    assert engine.closed
