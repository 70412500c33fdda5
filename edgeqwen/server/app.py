"""The routes: what is asked is read, given to a model's engine, and its answer sent; it knows no engine's kind."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from edgeqwen.errors import EdgeqwenError
from edgeqwen.server.accounting import Accounting
from edgeqwen.server.answering import Answering, to_json
from edgeqwen.server.failures import Failure, HttpError, failure_of
from edgeqwen.server.json_body import BodyReader
from edgeqwen.server.metrics import CONTENT_TYPE, Metrics
from edgeqwen.server.models import Models, Served
from edgeqwen.server.openai_chat import ChatWire
from edgeqwen.server.openai_request import Asked, chat_from, text_from
from edgeqwen.server.openai_response import Head, model_json
from edgeqwen.server.openai_text import TextWire
from edgeqwen.server.openapi import docs_page, document
from edgeqwen.server.presenter import Presenter
from edgeqwen.server.record import RECORD, Record
from edgeqwen.server.security import OWNER, Access, Guard

logger = logging.getLogger("edgeqwen.server")


class Api:
    """The endpoints of one server."""

    def __init__(self, models: Models, reader: BodyReader, metrics: Metrics, answer_s: float | None) -> None:
        self._models = models
        self._answer_s = answer_s
        self._reader = reader
        self._metrics = metrics

    async def chat(self, request: Request) -> ASGIApp:
        """POST /v1/chat/completions."""
        asked = chat_from(await self._reader.json(request), request.scope[OWNER])
        served = self._models.find(asked.model)
        presenters = [Presenter(asked.shown) for _ in asked.requests]
        return self._answer(request, served, asked, presenters, ChatWire(self._head(request, served, asked)))

    async def text(self, request: Request) -> ASGIApp:
        """POST /v1/completions."""
        asked = text_from(await self._reader.json(request), request.scope[OWNER])
        served = self._models.find(asked.model)
        presenters = [Presenter(chat=False) for _ in asked.requests]
        wire = TextWire(self._head(request, served, asked), asked.echoes)
        return self._answer(request, served, asked, presenters, wire)

    async def models(self, _request: Request) -> Response:
        """GET /v1/models."""
        return _json({"object": "list", "data": [self._model(served) for served in self._models.served]})

    async def model(self, request: Request) -> Response:
        """GET /v1/models/NAME."""
        return _json(self._model(self._models.find(request.path_params["name"])))

    async def health(self, _request: Request) -> Response:
        """GET /health: whether the process is well; while it loads or an engine is started again, 503."""
        return self._state({"ready": "healthy", "draining": "healthy"})

    async def ready(self, _request: Request) -> Response:
        """GET /ready: whether it takes requests."""
        return self._state({"ready": "ready"})

    async def metrics(self, _request: Request) -> Response:
        """GET /metrics."""
        return Response(self._metrics.text(), headers={"content-type": CONTENT_TYPE})

    def _answer(
        self, request: Request, served: Served, asked: Asked, presenters: list[Presenter], wire: ChatWire | TextWire
    ) -> ASGIApp:
        served.check_loaded()
        record: Record = request.scope[RECORD]
        record.model, record.stream = self._models.identity(served), asked.stream
        headers = {"x-edgeqwen-ignored": ", ".join(asked.ignored)} if asked.ignored else {}
        requests = [replace(one, seconds=self._answer_s) for one in asked.requests]
        return Answering(served.engine, requests, presenters, wire, record, headers, asked.structure)

    def _head(self, request: Request, served: Served, asked: Asked) -> Head:
        record: Record = request.scope[RECORD]
        return Head(
            record.id, int(time.time()), self._models.identity(served),
            answers=len(asked.requests), prompts=asked.prompts, include_usage=asked.include_usage,
        )  # fmt: skip

    def _model(self, served: Served) -> dict[str, Any]:
        name, info = self._models.identity(served), served.engine.info
        facts: dict[str, Any] = {"aliases": self._models.aliases(served)}
        if info is not None:
            facts |= {"max_model_len": info.context_length, "thinks": info.thinks, "engine": info.engine}
        return model_json(name, self._models.created, facts)

    def _state(self, words: Mapping[str, str]) -> Response:
        """200 if all engines are in a state that has a word, else 503 with the first other state."""
        states = [served.engine.state for served in self._models.served]
        bad = [state for state in states if state not in words]
        headers = {"retry-after": "5"} if bad else {}
        return _json({"status": bad[0] if bad else words[states[0]]}, 503 if bad else 200, headers)


def application(
    models: Models, access: Access, *, reader: BodyReader | None = None, answer_s: float | None = None
) -> Starlette:
    """The ASGI application over models whose engines somebody else starts and ends; see ServerSettings."""
    metrics = Metrics(models)
    api = Api(models, reader or BodyReader(), metrics, answer_s)
    document_json, page = to_json(document()), docs_page()

    async def openapi(_request: Request) -> Response:
        return Response(document_json, media_type="application/json")

    async def docs(_request: Request) -> Response:
        return Response(page, media_type="text/html", headers={"content-security-policy": DOCS_POLICY})

    routes = [
        Route("/v1/chat/completions", api.chat, methods=["POST"]),
        Route("/v1/completions", api.text, methods=["POST"]),
        Route("/v1/models", api.models),
        Route("/v1/models/{name:path}", api.model),
        Route("/health", api.health),
        Route("/ready", api.ready),
        Route("/metrics", api.metrics),
        Route("/openapi.json", openapi),
        Route("/docs", docs),
    ]
    paths = frozenset(route.path for route in routes)
    middleware = [Middleware(Accounting, metrics=metrics, routes=paths), Middleware(Guard, access=access)]
    app = Starlette(
        routes=routes,
        middleware=middleware,
        exception_handlers={EdgeqwenError: _fail, HTTPException: _no_route},
    )
    app.router.redirect_slashes = False
    return app


DOCS_POLICY = "default-src 'none'; style-src 'unsafe-inline'"  # the page brings all it needs


async def _fail(request: Request, error: Exception) -> Response:
    failure = failure_of(error)
    if RECORD in request.scope:
        request.scope[RECORD].error = failure.code or "invalid_request"
    return _failed(failure)


async def _no_route(request: Request, error: Exception) -> Response:
    """Starlette's own errors: no such path, no such method."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    asked = f"{request.method[:20]} {request.url.path[:80]}"
    if status == 405:
        text = f"{asked}: this path takes another method"
    else:
        text = f"there is no {asked} here: the base_url of OpenAI's clients ends in /v1; /docs lists what there is"
    response = await _fail(
        request, HttpError(status, text, code="not_found" if status == 404 else "method_not_allowed")
    )
    if isinstance(error, HTTPException) and error.headers:
        response.headers.update(error.headers)
    return response


def _failed(failure: Failure) -> Response:
    return Response(failure.body, failure.status, failure.headers, "application/json")


def _json(data: Mapping[str, Any], status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(to_json(dict(data)), status, headers, "application/json")
