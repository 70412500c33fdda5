"""A model and its scheduler on a thread of their own: requests in from any thread, batches of events out."""

from __future__ import annotations

import logging
import math
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

from edgeqwen.errors import BusyError, EdgeqwenError, EngineDownError, EngineError
from edgeqwen.generation import Generation
from edgeqwen.messages import messages_from
from edgeqwen.model import Model
from edgeqwen.server.job import Event, Job
from edgeqwen.server.request import EngineInfo, EngineLoad, Request
from edgeqwen.server.scheduler import Scheduler
from edgeqwen.tools import check_tools

logger = logging.getLogger("edgeqwen")
Deliver = Callable[[list[Event], EngineLoad], None]
PREPARERS = 2  # threads that render and encode prompts: a sandboxed template may take two seconds
ANSWER_S = 10.0  # how long an answer takes, until one has been seen
CLOSE_S = 5.0  # native code is stopped within a step; it has hung if it takes longer


class Worker:
    """Answers requests by number. `deliver` is called from several threads, with every event of a step at once."""

    def __init__(
        self, model: Model, *, parallel: int, waiting_max: int, deliver: Deliver, failed: Callable[[], None]
    ) -> None:
        """`failed` is called where nothing will be answered any more, before the answers are told."""
        self._failed = failed
        self._model = model
        self._scheduler = Scheduler(model.backend, parallel)
        self._parallel = parallel
        self._waiting_max = waiting_max
        self._deliver = deliver
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._open: dict[int, float] = {}  # number -> when it was asked; until its last event
        self._cancelled: set[int] = set()  # that the scheduler has not been told of yet
        self._lock = threading.Lock()  # of the two above
        self._answer_s = ANSWER_S
        self._load = self._scheduler.load
        self._closing = False
        self._preparers = ThreadPoolExecutor(PREPARERS, "edgeqwen-prepare")
        self._thread = threading.Thread(target=self._run, name="edgeqwen-engine", daemon=True)
        self._thread.start()

    @property
    def info(self) -> EngineInfo:
        model, plan = self._model, self._model.card.plan
        return EngineInfo(
            name=model.card.name,
            engine=plan.engine if plan else "scripted",
            context_length=model.context_length,
            vocab_size=model.tokenizer.vocab_size,
            sequences=self._parallel,
            thinks=model.template.thinks,
        )

    def ask(self, number: int, request: Request) -> None:
        """Start on a request: its events, errors among them, go to `deliver`."""
        asked = time.perf_counter()
        with self._lock:
            waiting = len(self._open) - self._parallel
            busy = waiting >= self._waiting_max
            if not busy:
                self._open[number] = asked
        if busy:
            self._publish([(number, BusyError(waiting, self._retry_after_s(waiting)))])
        else:
            self._preparers.submit(self._prepare, number, request, asked)

    def cancel(self, number: int) -> None:
        """Drop an answer within a step or a prompt chunk; nothing more of it is delivered after that."""
        with self._lock:
            if self._open.pop(number, None) is None:
                return
            self._cancelled.add(number)
            self._inbox.put(partial(self._forget, number))
            self._scheduler.interrupt(self._cancelled)

    def close(self) -> None:
        """Stop where it is and free the model; what still runs gets no more events."""
        self._closing = True
        self._inbox.put(lambda: None)
        self._model.interrupt()
        self._preparers.shutdown(wait=False, cancel_futures=True)
        self._thread.join(CLOSE_S)
        if not self._thread.is_alive():
            self._model.close()

    def _prepare(self, number: int, request: Request, asked: float) -> None:
        try:
            generation = self._generation(request)
        except EdgeqwenError as error:
            self._publish([(number, error)])
            return
        except Exception as error:
            logger.exception("a request could not be prepared")
            self._publish([(number, EngineError(f"the request could not be prepared: {error!r}"))])
            return
        deadline = math.inf if request.seconds is None else asked + request.seconds
        job = Job(number, generation, request.owner, deadline)
        with self._lock:  # a cancellation is put behind this, or has happened
            if number in self._open:
                self._inbox.put(partial(self._scheduler.add, job))

    def _generation(self, request: Request) -> Generation:
        language, context_length = self._model.language, self._model.context_length
        if request.prompt is not None:
            return language.continuation(request.prompt, request.config, context_length=context_length)
        return language.answer(
            messages_from(request.messages), check_tools(request.tools), request.config, context_length=context_length
        )

    def _run(self) -> None:
        try:
            while not self._closing:
                self._obey()
                self._publish(self._scheduler.step())
        except Exception as error:
            logger.exception("the scheduler failed")
            with self._lock:
                numbers = list(self._open)
            self._failed()
            self._publish([(number, EngineDownError(f"the engine failed: {error!r}")) for number in numbers])

    def _obey(self) -> None:
        """Do what was put into the inbox; wait for something to do where there is nothing."""
        if self._scheduler.idle:
            while self._inbox.empty() and self._scheduler.rest():
                pass
            self._inbox.get()()
        while True:
            try:
                command = self._inbox.get_nowait()
            except queue.Empty:
                return
            command()

    def _forget(self, number: int) -> None:
        self._scheduler.cancel(number)
        with self._lock:
            self._cancelled.discard(number)

    def _publish(self, events: list[Event]) -> None:
        now = time.perf_counter()
        with self._lock:
            for number, event in events:
                if isinstance(event, EdgeqwenError) or event.finish_reason is not None:
                    took = now - self._open.pop(number, now)
                    self._answer_s += 0.2 * (took - self._answer_s)
            queued = max(0, len(self._open) - len(self._scheduler.running))
        load = replace(self._scheduler.load, queued=queued)
        if events or load != self._load:
            self._load = load
            self._deliver(events, load)

    def _retry_after_s(self, waiting: int) -> int:
        return min(600, math.ceil(self._answer_s * (waiting + 1) / self._parallel))
