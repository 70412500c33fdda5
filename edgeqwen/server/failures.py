"""An error -> what HTTP and OpenAI's wire say of it; it knows no route. A traceback never leaves the process."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

from edgeqwen.errors import (
    BusyError,
    ContextOverflowError,
    EdgeqwenError,
    EngineDownError,
    NoRoomError,
    RequestError,
    TemplateError,
)

DOWN_RETRY_S = 5  # the engine is loading or being started again
INVALID, SERVER = "invalid_request_error", "server_error"  # OpenAI's two types of error that say who must act
# The library's messages open with the place of the fault: messages[3].content, tools[0], temperature=9.
_PLACE = re.compile(
    r"(messages|tools|response_format|guided_[a-z]+|structured_outputs|logit_bias|[a-z_]+(?==))[\w.\[\]$-]*(?<!\.)"
)
_SHAPE = re.compile(r"(schema|regex|choice)\b")  # what the library calls the fields that hold the content to a shape


class FieldError(RequestError):
    """A field of the body that cannot be used; `param` is its place."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(message)
        self.param = param


class HttpError(RequestError):
    """A request that fails before its body matters, with the status that says so."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.retry_s = retry_s


def placed(error: RequestError, place: str) -> RequestError:
    """The error with the name of the field of the body where the library's speaks of a schema, regex or choice."""
    text = str(error)
    found = _SHAPE.match(text) if place else None
    return RequestError(place + text[found.end() :]) if found else error


@dataclass(frozen=True, slots=True)
class Failure:
    """Status, headers and OpenAI's error object."""

    status: int
    message: str
    type: str = INVALID
    param: str | None = None
    code: str | None = None
    retry_s: int | None = None
    figures: dict[str, int] = field(default_factory=dict)

    @property
    def headers(self) -> dict[str, str]:
        headers = {} if self.retry_s is None else {"retry-after": str(self.retry_s)}
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        return headers

    @property
    def body(self) -> bytes:
        """{"error": ...}: of a response, or of a frame on a stream that has begun."""
        error: dict[str, Any] = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return json.dumps({"error": {**error, **self.figures}}).encode()


def failure_of(error: BaseException) -> Failure:
    """What a client is told of an error. The text of one that is not ours stays here."""
    if isinstance(error, HttpError):
        kind = SERVER if error.status >= 500 else INVALID
        return Failure(error.status, str(error), kind, error.param, error.code, error.retry_s)
    if isinstance(error, RequestError | TemplateError | NoRoomError):
        return _asked_wrongly(error)
    if isinstance(error, BusyError):
        return Failure(429, str(error), "rate_limit_error", code="queue_full", retry_s=error.retry_after_s)
    if isinstance(error, EngineDownError):
        return Failure(503, str(error), SERVER, code="engine_down", retry_s=DOWN_RETRY_S)
    if isinstance(error, EdgeqwenError):
        return Failure(500, str(error), SERVER, code="engine_error")
    return Failure(500, "an internal error; the server's log says more", SERVER, code="internal_error")


def _asked_wrongly(error: EdgeqwenError) -> Failure:
    text = str(error)
    if isinstance(error, FieldError):
        return Failure(400, text, param=error.param)
    if isinstance(error, ContextOverflowError):
        figures = {"n_prompt_tokens": error.prompt_tokens, "n_ctx": error.context_length}  # llama-server's names
        text = f"{error.found}: shorten the messages, or serve with a larger --context"
        return Failure(400, text, param="messages", code="context_length_exceeded", figures=figures)
    if isinstance(error, NoRoomError):
        return Failure(400, text, param="messages", code="context_length_exceeded")
    place = _PLACE.match(text)
    return Failure(400, text, param=place[0] if place else None)
