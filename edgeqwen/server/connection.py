"""One HTTP connection with the deadlines that uvicorn has not: for a request's head, its body and a slow reader."""

from __future__ import annotations

import asyncio
import socket
import sys
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from edgeqwen.server.json_body import BODY_S

HEAD_S = 10.0
WRITE_S = 60.0  # for a reader that has stopped to take some of what waits for it
MAX_HEAD_BYTES = 32 << 10
MAX_CONNECTIONS = 512
IDLE_S = 60  # of a silent peer, until the system asks whether it is still there


def _refusal(status: str, code: str, message: str, *headers: str) -> bytes:
    """A whole response for a connection that no request was read from."""
    body = f'{{"error":{{"message":"{message}","type":"server_error","param":null,"code":"{code}"}}}}'
    lines = [f"HTTP/1.1 {status}", "content-type: application/json", f"content-length: {len(body)}", *headers]
    return "\r\n".join([*lines, "connection: close", "", body]).encode()


_FULL = _refusal("503 Service Unavailable", "too_many_connections", "too many connections", "retry-after: 2")
_LATE = _refusal("408 Request Timeout", "request_timeout", "the request did not come in time")


class Connection(H11Protocol):
    """uvicorn's own protocol, watched from outside: it only overrides what asyncio.Protocol has.

    uvicorn takes a request byte by byte for as long as the client likes, and forgets its keep-alive timer with each.
    """

    max_connections = MAX_CONNECTIONS
    head_s, body_s, write_s = HEAD_S, BODY_S + 2, WRITE_S  # the body's own reader is first, and says 408

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._phase: str | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        if len(self.connections) > self.max_connections:
            transport.write(_FULL)
            transport.close()
            return
        _notice_silence(transport.get_extra_info("socket"))
        self._watch()

    def data_received(self, data: bytes) -> None:
        if not self.transport.is_closing():
            super().data_received(data)
            self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        _cancel(self._timer)
        _cancel(self._write_timer)
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._write_timer = self.loop.call_later(self.write_s, self.transport.abort)

    def resume_writing(self) -> None:
        _cancel(self._write_timer)
        super().resume_writing()

    def _watch(self) -> None:
        """Start the clock of the phase that the request has come to."""
        phase = {h11.IDLE: "head", h11.SEND_BODY: "body"}.get(self.conn.their_state)
        if phase == self._phase:
            return
        self._phase = phase
        _cancel(self._timer)
        seconds = {"head": self.head_s, "body": self.body_s}
        self._timer = self.loop.call_later(seconds[phase], self._expire) if phase else None

    def _expire(self) -> None:
        if self._phase == "head" and not self.transport.is_closing():
            self.transport.write(_LATE)
            self.transport.close()
        else:
            self.transport.abort()


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()


def _notice_silence(sock: Any) -> None:
    """Let the system find out that a peer has vanished without a word: a cable, a suspended laptop."""
    if sock is None or sock.family not in {socket.AF_INET, socket.AF_INET6}:
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if sys.platform == "linux":
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, IDLE_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(WRITE_S * 1000))
