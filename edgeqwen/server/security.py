"""Who may ask: the Host and Origin of a request and its token; it knows no route but the open ones."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
import socket
from dataclasses import dataclass
from pathlib import Path

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgeqwen.errors import RequestError
from edgeqwen.server.connection import MAX_HEAD_BYTES
from edgeqwen.server.failures import Failure
from edgeqwen.server.record import RECORD

OPEN_PATHS = frozenset({"/health", "/ready", "/docs", "/openapi.json"})  # they tell nothing that is not public
MIN_KEY_CHARS = 8
_ORIGIN = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/*?#\s]+/?")
_HOST = re.compile(r"[^/:*?#@\s]+|\[?[0-9A-Fa-f:.]+\]?")
_HEADER_NAMES = re.compile(r"[A-Za-z0-9_, -]{1,1000}")
OWNER = "edgeqwen.owner"  # key of an ASGI scope: who asks, by the token


@dataclass(frozen=True, slots=True)
class Access:
    """Who may ask a server: tokens, names it may be called by, pages of other origins that may call it."""

    keys: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()


class Guard:
    """ASGI middleware. What it refuses reaches no route; who it lets in has an owner, by which caches are kept apart.

    A page of another site, or one whose name an attacker has pointed here (DNS rebinding), reaches nothing, on
    loopback too: its requests carry its Origin, and its name as Host.
    """

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._owners = {_digest(key): f"key{index}" for index, key in enumerate(access.keys)}
        self._hosts = frozenset(map(str.lower, access.allowed_hosts)) | _own_names()
        self._origins = frozenset(origin.rstrip("/").lower() for origin in access.origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        send = _Answer(send, origin if self._is_named(origin) else None)
        refused = self._refusal(scope, headers, origin)
        if refused is not None:
            if RECORD in scope:
                scope[RECORD].error = refused.code
            await Response(refused.body, refused.status, refused.headers, "application/json")(scope, receive, send)
        elif origin is not None and scope["method"] == "OPTIONS":
            await Response(status_code=204, headers=_preflight(headers))(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _refusal(self, scope: Scope, headers: Headers, origin: str | None) -> Failure | None:
        if sum(len(name) + len(value) for name, value in scope["headers"]) > MAX_HEAD_BYTES:
            return Failure(431, f"a request's head has at most {MAX_HEAD_BYTES} bytes", code="head_too_large")
        host = headers.get("host", "")
        if len(headers.getlist("host")) > 1 or not self._is_known(_name(host)):
            return Failure(
                403, f"this server does not go by the name {host[:80]!r}: give --allowed-host, or use its address",
                code="host_not_allowed",
            )  # fmt: skip
        if (
            origin is not None
            and not self._is_named(origin)
            and origin.lower() != f"{scope['scheme']}://{host}".lower()
        ):
            return Failure(
                403, f"pages of {origin[:80]!r} may not ask this server: start it with --cors to let them",
                code="origin_not_allowed",
            )  # fmt: skip
        if scope["path"] in OPEN_PATHS or scope["method"] == "OPTIONS":
            return None
        scope[OWNER] = self._owner(headers)
        if scope[OWNER] is None:
            return Failure(401, "this server needs a token: Authorization: Bearer ...", code="invalid_api_key")
        return None

    def _owner(self, headers: Headers) -> str | None:
        """Whose token it is, compared in constant time with every one there is; None for nobody's."""
        if not self._owners:
            return ""
        kind, _, token = headers.get("authorization", "").partition(" ")
        given = token.strip() if kind.lower() == "bearer" else headers.get("x-api-key", "")
        digest = _digest(given)
        matches = [owner for known, owner in self._owners.items() if hmac.compare_digest(known, digest)]
        return matches[0] if matches else None

    def _is_named(self, origin: str | None) -> bool:
        return origin is not None and origin.lower() in self._origins

    def _is_known(self, name: str) -> bool:
        """Whether it is an address, which no rebinding can make another's, or a name of ours."""
        return name in self._hosts or name.endswith(".localhost") or _address(name) is not None


class _Answer:
    """Sends a response with what keeps a browser from misusing it."""

    def __init__(self, send: Send, origin: str | None) -> None:
        self._send = send
        self._origin = origin

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers["x-content-type-options"] = "nosniff"
            headers.append("vary", "origin")
            if self._origin is not None:
                headers["access-control-allow-origin"] = self._origin
                headers["access-control-expose-headers"] = "x-request-id, retry-after"
        await self._send(message)


def _preflight(headers: Headers) -> dict[str, str]:
    """What a browser wants to know before a page of an origin that was named asks: OpenAI's client has many headers."""
    wanted = headers.get("access-control-request-headers", "")
    return {
        "access-control-allow-methods": "GET, POST",
        "access-control-allow-headers": wanted if _HEADER_NAMES.fullmatch(wanted) else "authorization, content-type",
        "access-control-allow-private-network": "true",
        "access-control-max-age": "600",
    }


def check_access(host: str, access: Access) -> None:
    """RequestError for what would leave the server open: no token off loopback, any origin, a short token."""
    if not is_loopback(host) and not access.keys:
        raise RequestError(
            f"--host {host} is reachable from other machines and there is no token: give --api-key-file FILE "
            "(one token a line), or stay on 127.0.0.1"
        )
    for origin in access.origins:
        if _ORIGIN.fullmatch(origin) is None:
            raise RequestError(
                f"--cors {origin!r}: name each origin, such as http://localhost:3000, without a path; * would open all"
            )
    for name in access.allowed_hosts:
        if _HOST.fullmatch(name) is None:
            raise RequestError(f"--allowed-host {name!r}: give a name as it stands in a URL, such as pi.local, no more")


def read_keys(path: Path) -> tuple[str, ...]:
    """The tokens of a file: one a line, empty lines and those that begin with # left out."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeError) as error:
        raise RequestError(f"--api-key-file {path}: {error}") from None
    keys = tuple(dict.fromkeys(line.strip() for line in lines if line.strip() and not line.startswith("#")))
    if not keys:
        raise RequestError(f"--api-key-file {path}: there is no token in it: write one a line")
    for number, key in enumerate(keys, 1):
        if len(key) < MIN_KEY_CHARS or not key.isascii() or not key.isprintable() or " " in key:
            raise RequestError(
                f"--api-key-file {path}: token {number} must have {MIN_KEY_CHARS} printable ASCII characters or more"
            )
    return keys


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    address = _address(host.strip("[]").lower())
    return host.lower() == "localhost" if address is None else address.is_loopback


def _own_names() -> frozenset[str]:
    name = socket.gethostname().lower()
    return frozenset({"localhost", name, f"{name}.local"})


def _name(host: str) -> str:
    """A Host header without its port: a name, or an address without brackets."""
    host = host.strip().lower()
    if host.startswith("["):
        name, bracket, _ = host[1:].partition("]")
        return name if bracket else ""
    return host.partition(":")[0].rstrip(".")


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
