"""The server's log as lines for people or as JSON; nothing that a user said is ever in it."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Any, TextIO

LOGGERS = ("edgeqwen", "uvicorn.error")


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, logger, message, and a request's facts."""

    def format(self, record: logging.LogRecord) -> str:
        data: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "facts", {}),
        }
        if record.exc_info:
            data["exception"] = self.formatException(record.exc_info)
        return json.dumps(data)


class Lines(logging.Formatter):
    """13:02:11 POST /v1/chat/completions 200 0.52s ..."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(message)s", "%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        facts: dict[str, Any] = getattr(record, "facts", {})
        if facts:
            rest = " ".join(f"{name}={value}" for name, value in facts.items() if name not in _FIRST)
            outcome = "" if facts["outcome"] == "ok" else f" {facts['outcome']}"
            record.message = (
                f"{facts['method']} {facts['path']} {facts['status']}{outcome} {facts['seconds']:.2f}s {rest}"
            )
        elif record.levelno > logging.INFO:
            record.message = f"{record.levelname.lower()}: {record.message}"
        return super().formatMessage(record)


_FIRST = {"id", "method", "path", "status", "outcome", "seconds"}


def log_to(stream: TextIO, *, as_json: bool, level: int = logging.INFO) -> None:
    """Send the server's log there."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines() if as_json else Lines())
    for name in LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel(level)
        logger.propagate = False
    logging.getLogger("uvicorn.error").setLevel(max(level, logging.WARNING))  # its starting and ending is told here
