"""A hub on the loopback interface that serves one model and can be told to fail; it logs what it was asked."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from urllib.parse import urlsplit

MODEL = "Qwen/Qwen3-Tiny"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def git_hash(raw: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(raw) + raw, usedforsecurity=False).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """The two endpoints that a download calls; `self.server.hub` says how to behave."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        hub, path = self.server.hub, urlsplit(self.path)
        authorization, ranged = self.headers.get("Authorization"), self.headers.get("Range")
        agent, host = self.headers["User-Agent"], self.headers["Host"]
        hub.seen.append(SimpleNamespace(path=path.path, range=ranged, token=authorization, agent=agent, host=host))
        api, files = f"/api/models/{MODEL}/revision/", f"/{MODEL}/resolve/{COMMIT}/"
        if hub.stall is not None:
            hub.stall.wait(30)
        if path.path == f"{api}main" and hub.status == 200:
            self.answer(200, hub.page or json.dumps(hub.listing()).encode())
        elif path.path.startswith(api):
            self.answer(
                404 if hub.status == 200 else hub.status, b"{}", {"X-Error-Code": hub.code or "RevisionNotFound"}
            )
        elif path.path.startswith(files) and (content := hub.files.get(path.path.removeprefix(files))) is not None:
            self.send_file(path.path.removeprefix(files), content, ranged)
        else:
            self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def send_file(self, name, content, ranged):
        hub = self.server.hub
        if name in hub.failing:
            self.answer(503, b"")
            return
        if hub.cdn and self.headers["Host"].startswith("127.0.0.1"):
            self.answer(302, b"", {"Location": f"{hub.cdn}{self.path}?signature=secret"})
            return
        start = int(ranged.removeprefix("bytes=").removesuffix("-")) if ranged else 0
        part = content[start:]
        headers = {"ETag": f'"{git_hash(content)}"', "X-Repo-Commit": COMMIT}
        if ranged:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        if cut := hub.cuts.pop(name, None):
            self.answer(206 if ranged else 200, part[:cut], headers, claimed=len(part))
            self.close_connection = True  # in the middle of the body
        else:
            self.answer(206 if ranged else 200, part, headers)

    def answer(self, status, body, headers=None, claimed=None):
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body) if claimed is None else claimed))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_):
        """A client that goes away is what some tests are about."""


class Hub:
    """What the server serves, and the log of what was asked."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.seen: list[SimpleNamespace] = []
        self.status, self.code, self.page = 200, None, None
        self.cuts: dict[str, int] = {}
        self.failing: set[str] = set()
        self.stall: threading.Event | None = None
        self.cdn: str | None = None
        self.commit = COMMIT
        self.overrides: dict[str, dict] = {}

    def listing(self):
        siblings = []
        for name, raw in self.files.items():
            sibling = {"rfilename": name, "size": len(raw), "blobId": git_hash(raw)}
            if name.endswith(".safetensors"):
                sibling["lfs"] = {"sha256": hashlib.sha256(raw).hexdigest(), "size": len(raw), "pointerSize": 134}
            siblings.append(sibling | self.overrides.get(name, {}))
        return {"_id": "1", "id": MODEL, "sha": self.commit, "siblings": siblings, "private": False, "tags": []}

    def asked(self, name=None):
        """The requests for files, or for one file."""
        asked = [request for request in self.seen if "/resolve/" in request.path]
        return [request for request in asked if request.path.endswith(f"/{name}")] if name else asked


@contextlib.contextmanager
def serving(files):
    """A Hub at `endpoint` that serves `files`, name -> bytes, until the block ends."""
    hub = Hub(files)
    server = Server(("127.0.0.1", 0), Handler)
    server.hub = hub
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    yield hub
    if hub.stall:
        hub.stall.set()
    server.shutdown()
    server.server_close()
    thread.join()
