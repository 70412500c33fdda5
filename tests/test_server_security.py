"""Who is let in: Host, Origin, token, CORS; and which names find which model."""

import pytest
from click.testing import CliRunner
from server_kit import CHAT, HELLO, FakeEngine, serving

from edgeqwen.cli import edgeqwen
from edgeqwen.errors import RequestError
from edgeqwen.server.failures import HttpError
from edgeqwen.server.models import Models, Served, names_of, with_aliases
from edgeqwen.server.request import EngineInfo
from edgeqwen.server.security import Access, check_access, is_loopback, read_keys

KEYS = ("first-token-1", "second-token-2")


@pytest.fixture(scope="module")
def guarded():
    with serving(access=Access(KEYS, ("box.example",), ("https://app.example",))) as server:
        yield server


@pytest.fixture(scope="module")
def open_server():
    with serving() as server:
        yield server


def code(response):
    return response.json()["error"]["code"]


@pytest.mark.parametrize("token", ["", "EMPTY", "first-token-", "first-token-11", "Bearer", "ÿ", "first-token-1 x"])
def test_a_wrong_token_is_refused(guarded, token):
    headers = {"authorization": f"Bearer {token}".strip().encode("latin-1")}
    response = guarded.post({"messages": HELLO}, headers=headers)
    assert (response.status_code, code(response)) == (401, "invalid_api_key")
    assert response.headers["www-authenticate"] == "Bearer"
    assert response.headers["x-request-id"]


def test_every_right_token_has_its_own_cache(guarded):
    asked = len(guarded.engine.asked)
    for header in (
        {"authorization": f"Bearer {KEYS[0]}"},
        {"authorization": f"bearer {KEYS[1]}"},
        {"x-api-key": KEYS[0]},
    ):
        assert guarded.post({"messages": HELLO}, headers=header).status_code == 200
    first, second, again = (request.owner for request in guarded.engine.asked[asked:])
    assert first == again != second
    assert not any(key in first + second for key in KEYS)


def test_without_tokens_any_will_do(open_server):
    assert open_server.post({"messages": HELLO}, headers={"authorization": "Bearer EMPTY"}).status_code == 200
    assert open_server.engine.asked[-1].owner == ""


@pytest.mark.parametrize("path", ["/health", "/ready", "/docs", "/openapi.json"])
def test_what_is_public_needs_no_token(guarded, path):
    assert guarded.client.get(path).status_code == 200


@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/v1/models/x", "/nope"])
def test_the_rest_does(guarded, path):
    assert guarded.client.get(path).status_code == 401


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.0.0.1:8000",
        "localhost:1",
        "[::1]:8000",
        "192.168.1.5",
        "box.example",
        "BOX.example:80",
        "a.localhost",
    ],
)
def test_hosts_that_are_ours(guarded, host):
    assert guarded.client.get("/health", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.evil.example", "", "[::1", "1.2.3"],
)
def test_other_hosts_are_refused(guarded, host):
    response = guarded.client.get("/health", headers={"host": host})
    assert (response.status_code, code(response)) == (403, "host_not_allowed")


def test_a_head_that_is_too_large_is_refused(open_server):
    for headers in ({"x-a": "a" * 40_000}, {f"x-{number}": "a" * 200 for number in range(180)}):
        response = open_server.client.get("/health", headers=headers)
        assert (response.status_code, code(response)) == (431, "head_too_large")


def test_two_hosts_are_refused(open_server):
    reply = open_server.raw(
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\nConnection: close\r\n\r\n"
    )
    assert reply.split(b"\r\n")[0].split()[1] in {b"400", b"403"}


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://app.example", "https://app.example.evil.example"]
)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
def test_pages_of_others_reach_nothing(guarded, origin, method):
    headers = {"origin": origin, "authorization": f"Bearer {KEYS[0]}"}
    asked = len(guarded.engine.asked)
    response = guarded.client.request(method, CHAT, headers=headers, json={"messages": HELLO})
    assert (response.status_code, code(response)) == (403, "origin_not_allowed")
    assert "access-control-allow-origin" not in response.headers
    assert len(guarded.engine.asked) == asked


def test_a_page_that_was_named_may_ask(guarded):
    origin = {"origin": "https://app.example"}
    before = guarded.client.options(
        CHAT, headers={**origin, "access-control-request-headers": "authorization, x-stainless-lang"}
    )
    assert before.status_code == 204
    assert before.headers["access-control-allow-headers"] == "authorization, x-stainless-lang"
    response = guarded.post({"messages": HELLO}, headers={**origin, "authorization": f"Bearer {KEYS[0]}"})
    assert response.status_code == 200
    for answer in (before, response, guarded.post({}, headers=origin)):
        assert answer.headers["access-control-allow-origin"] == "https://app.example"
        assert "access-control-allow-credentials" not in answer.headers
        assert answer.headers["vary"] == "origin"


def test_a_page_of_the_server_itself_may_ask(open_server):
    response = open_server.post({"messages": HELLO}, headers={"origin": open_server.url})
    assert response.status_code == 200
    assert response.headers["x-content-type-options"] == "nosniff"
    assert "access-control-allow-origin" not in response.headers


# Settings


def test_a_token_is_needed_off_loopback():
    for host in ("127.0.0.1", "::1", "[::1]", "localhost", "127.1.2.3"):
        assert is_loopback(host)
        check_access(host, Access())
    for host in ("0.0.0.0", "::", "192.168.0.1", "box.example", "127.0.0.1.evil.example"):
        with pytest.raises(RequestError, match="api-key-file"):
            check_access(host, Access())
        check_access(host, Access(KEYS))


@pytest.mark.parametrize("origin", ["*", "https://*.example", "app.example", "http://app.example/page"])
def test_origins_are_named_one_by_one(origin):
    with pytest.raises(RequestError, match="--cors"):
        check_access("127.0.0.1", Access(origins=(origin,)))


@pytest.mark.parametrize("name", ["", "http://pi.local", "pi.local:80", "pi.local/x", "*.local"])
def test_names_are_names(name):
    with pytest.raises(RequestError, match="--allowed-host"):
        check_access("127.0.0.1", Access(allowed_hosts=(name,)))
    check_access("127.0.0.1", Access(allowed_hosts=("pi.local", "192.168.0.7", "fe80::1", "[fe80::1]")))


@pytest.mark.parametrize("flag", ["--max-seconds", "--drain"])
def test_seconds_are_a_number(flag):
    result = CliRunner().invoke(edgeqwen, ["serve", "nano", flag, "nan"])
    assert (result.exit_code, "nan" in result.output) == (2, True)


def test_tokens_of_a_file(tmp_path):
    file = tmp_path / "keys"
    file.write_text("# mine\nfirst-token-1\n\n  second-token-2  \nfirst-token-1\n")
    assert read_keys(file) == KEYS
    for text in ("", "# none\n", "short\n", "with blanks in it\n", "schlüsselwort\n"):
        file.write_text(text)
        with pytest.raises(RequestError, match="api-key-file"):
            read_keys(file)
    file.write_bytes(b"\xff\xff\xff")
    with pytest.raises(RequestError, match="api-key-file"):
        read_keys(file)
    with pytest.raises(RequestError):
        read_keys(tmp_path / "none")


# Models by name


def served(*names):
    """Models of these names, each started from a folder of its name with its type."""
    engines = []
    for name in names:
        engine = FakeEngine()
        engine.info = EngineInfo(name.partition("@")[0], "fake", 1, 1, 1, thinks=True)
        engines.append(Served(engine, (name.replace("@", "-").lower(),), ()))
    return Models(tuple(engines))


def test_names_find_one_model_or_none():
    models = served("Qwen3-0.6B@q4_0", "Qwen3-1.7B@q8_0", "Qwen2.5-1.5B-Instruct@q4_k_m")
    small, large, old = models.served
    for name in (
        "Qwen3-0.6B",
        "qwen3-0.6b",
        "Qwen/Qwen3-0.6B",
        "qwen3:0.6b",
        "qwen3-0.6b-q4_0",
        "Qwen-0.6B",
        "Qwen3-0.6B-GGUF:Q8_0",
    ):
        assert models.find(name) is small, name
    assert models.find("qwen-1.7b") is large
    assert models.find("Qwen/Qwen2.5-1.5B-Instruct-GGUF") is old
    assert models.find("qwen2.5:1.5b") is old
    for name in ("Qwen3-4B", "gpt-4o", "qwen", "q4_0", "Qwen3-0.6B-finetune", "/"):
        with pytest.raises(HttpError) as caught:
            models.find(name)
        assert caught.value.status == 404
        assert "Qwen3-0.6B, Qwen3-1.7B, Qwen2.5-1.5B-Instruct" in str(caught.value)
    with pytest.raises(HttpError, match="model is missing"):
        models.find(None)


def test_two_types_of_one_model_are_told_apart():
    models = served("Qwen3-0.6B@q4_0", "Qwen3-0.6B@q8_0")
    assert [models.identity(one) for one in models.served] == ["qwen3-0.6b-q4_0", "qwen3-0.6b-q8_0"]
    assert models.find("qwen3-0.6b-q8_0") is models.find("Qwen/Qwen3-0.6B-Q8_0") is models.served[1]
    assert [models.aliases(one) for one in models.served] == [[], []]  # the name that both have finds neither
    with pytest.raises(HttpError, match=r"qwen3-0\.6b-q4_0, qwen3-0\.6b-q8_0"):
        models.find("Qwen3-0.6B")


def test_aliases(tmp_path):
    folder = tmp_path / "mine-q4_0"
    folder.mkdir()
    assert names_of(str(folder)) == ("mine-q4_0",)
    assert names_of("Qwen/Qwen3-0.6B") == ("Qwen/Qwen3-0.6B",)
    given = [str(folder), "Qwen/Qwen3-0.6B"]
    assert with_aliases(given, {"a": "mine-q4_0", "b": given[0], "c": given[1]}) == [
        (given[0], ("a", "b")),
        (given[1], ("c",)),
    ]
    assert with_aliases(given[:1], {"a": ""}) == [(given[0], ("a",))]
    for models, aliases in ((given, {"a": "other"}), (given, {"a": ""}), (given[:1] * 2, {})):
        with pytest.raises(RequestError):
            with_aliases(models, aliases)


def test_several_models_over_the_wire():
    engines = [FakeEngine(), FakeEngine()]
    engines[1].info = EngineInfo("Qwen3-1.7B", "fake", 1, 1, 1, thinks=True)
    with serving(*engines) as server:
        assert [model["id"] for model in server.client.get("/v1/models").json()["data"]] == ["Qwen3-0.6B", "Qwen3-1.7B"]
        assert server.chat(model="qwen-1.7b")["model"] == "Qwen3-1.7B"
        assert (len(engines[0].asked), len(engines[1].asked)) == (0, 1)
        assert server.post({"messages": HELLO}).status_code == 400
