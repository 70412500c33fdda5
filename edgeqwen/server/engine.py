"""The engine in this process: a worker thread behind the event loop. On boards too small for a second process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable

from edgeqwen.errors import EngineDownError
from edgeqwen.model import Model, load
from edgeqwen.server.answers import Answers
from edgeqwen.server.job import Event
from edgeqwen.server.request import EngineInfo, EngineLoad, EngineSettings, Request, State
from edgeqwen.server.worker import Worker
from edgeqwen.types import Delta


class LocalEngine:
    """edgeqwen.server.request.Engine without a process of its own: where native code dies, so does the server."""

    def __init__(self, settings: EngineSettings, open_model: Callable[[EngineSettings], Model] | None = None) -> None:
        """`open_model` loads another model than the settings name, for tests."""
        self.state: State = "loading"
        self.info: EngineInfo | None = None
        self._settings = settings
        self._open_model = open_model or model_of
        self._answers = Answers()
        self._worker: Worker | None = None
        self._load = EngineLoad()

    async def start(self) -> None:
        """Load the model; EdgeqwenError where that fails."""
        loop = asyncio.get_running_loop()
        model = await asyncio.to_thread(self._open_model, self._settings)

        def deliver(events: list[Event], load: EngineLoad) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._deliver, events, load)

        self._worker = Worker(
            model, parallel=self._settings.parallel, waiting_max=self._settings.waiting_max,
            deliver=deliver, failed=lambda: setattr(self, "state", "broken"),
        )  # fmt: skip
        self.info = self._worker.info
        self.state = "ready"

    def answer(self, request: Request) -> AsyncGenerator[Delta]:
        """Stream one answer: see the protocol."""
        return self._answers.stream(lambda number: self._ask(number, request), self._cancel)

    def load(self) -> EngineLoad:
        return self._load

    async def drain(self, seconds: float) -> None:
        """Take nothing new and wait for what runs."""
        self.state = "draining"
        await self._answers.ended(seconds)

    async def close(self) -> None:
        """End everything."""
        self.state = "draining"
        self._answers.fail("the server stops")
        if self._worker is not None:
            await asyncio.to_thread(self._worker.close)

    def _ask(self, number: int, request: Request) -> None:
        if self._worker is None or self.state != "ready":
            raise EngineDownError(f"the engine is {self.state}")
        self._worker.ask(number, request)

    def _cancel(self, number: int) -> None:
        if self._worker is not None:
            self._worker.cancel(number)

    def _deliver(self, events: list[Event], load: EngineLoad) -> None:
        self._load = load
        self._answers.deliver(events)


def model_of(settings: EngineSettings, progress: Callable[[int, int, str], None] | None = None) -> Model:
    """Load the model that the settings name, for as many answers side by side as they say."""
    return load(
        settings.model,
        type=settings.type,
        context_length=settings.context_length,
        threads=settings.threads,
        kv_type=settings.kv_type,
        gpu_layers=settings.gpu_layers,
        engine=settings.engine,
        offline=settings.offline,
        trust_template=settings.trust_template,
        force=settings.force,
        parallel=settings.parallel,
        progress=progress,
    )
