"""Gives each request an id and a record, and when it is over, a line in the log and its place in the metrics."""

from __future__ import annotations

import logging
import secrets

from starlette.datastructures import MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgeqwen.server.failures import failure_of
from edgeqwen.server.metrics import Metrics
from edgeqwen.server.record import RECORD, Record

logger = logging.getLogger("edgeqwen.access")
PREFIXES = {"/v1/chat/completions": "chatcmpl", "/v1/completions": "cmpl"}


class Accounting:
    """ASGI middleware, the outermost."""

    def __init__(self, app: ASGIApp, metrics: Metrics, routes: frozenset[str]) -> None:
        self._app = app
        self._metrics = metrics
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"]
        record = scope[RECORD] = Record(
            f"{PREFIXES.get(path, 'req')}-{secrets.token_hex(12)}", scope["method"], path,
            route=path if path in self._routes else "other",
        )  # fmt: skip

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = record.id
            elif not message.get("more_body"):
                self._close(record)  # before the client can know that it is over
            await send(message)

        try:
            await self._app(scope, receive, answer)
        except Exception as error:
            logger.exception("%s failed", record.id)
            failure = failure_of(error)
            record.error = failure.code or ""
            if not record.status:
                await Response(failure.body, failure.status, failure.headers, "application/json")(
                    scope, receive, answer
                )
        finally:
            self._close(record)

    def _close(self, record: Record) -> None:
        if not record.closed:
            record.closed = True
            self._metrics.count(record)
            logger.info("request", extra={"facts": record.facts()})
