"""FastAPI over one model: the answer streams as JSON lines, and a client that leaves ends it within a step.

EDGEQWEN_MODEL=nano uvicorn --app-dir examples fastapi_app:app
curl -N 127.0.0.1:8000/ask -H 'content-type: application/json' -d '{"question": "What is 123 + 456?"}'

For OpenAI's API, many answers side by side and limits there is `edgeqwen serve`; this is for a handler of your own.
"""

import contextlib
import json
import os
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field

from edgeqwen import EdgeqwenError, Model, load


class Question(BaseModel):
    """What a client sends."""

    question: Annotated[str, Field(min_length=1, max_length=4000)]
    thinking: bool = True


@contextlib.asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """One model, loaded before the first request and closed after the last."""
    app.state.model = await run_in_threadpool(load, os.environ.get("EDGEQWEN_MODEL", "nano"))
    yield
    app.state.model.close()


app = FastAPI(lifespan=lifespan)


@app.post("/ask")
async def ask(asked: Question, request: Request) -> StreamingResponse:
    """Answer in JSON lines: {"thinking": ...} or {"content": ...}, then {"finish": ..., "tokens": ...}."""
    model: Model = request.app.state.model

    async def lines() -> AsyncIterator[str]:
        deltas = model.astream(asked.question, thinking=asked.thinking, thinking_budget=256, seed=1)
        async with contextlib.aclosing(deltas):  # when the client leaves, Starlette cancels, and the answer ends
            try:
                async for delta in deltas:
                    if delta.thinking:
                        yield json.dumps({"thinking": delta.thinking}) + "\n"
                    if delta.content:
                        yield json.dumps({"content": delta.content}) + "\n"
                    if delta.usage:
                        end = {"finish": delta.finish_reason, "tokens": delta.usage.completion_tokens}
                        yield json.dumps(end) + "\n"
            except EdgeqwenError as error:  # a prompt that is too long, for example
                yield json.dumps({"error": str(error)}) + "\n"

    return StreamingResponse(lines(), media_type="application/x-ndjson")
