"""Many answers side by side on one engine, step by step; it knows ids and Generations, no text and no thread."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

from edgeqwen.backends.base import Aside, Backend, Chunk, Logits
from edgeqwen.errors import EdgeqwenError, EngineError, InterruptedForwardError, NoRoomError
from edgeqwen.generation import common_prefix
from edgeqwen.server.job import Event, Job
from edgeqwen.server.pace import Pace
from edgeqwen.server.prefix_cache import PrefixCache
from edgeqwen.server.request import EngineLoad
from edgeqwen.types import Delta, FinishReason, Timings

logger = logging.getLogger("edgeqwen")
HEADROOM = 64  # tokens that the pool must still take for every running answer, or a new one waits
ASIDE_MIN = 32  # tokens of a prompt; shorter ones are sooner done within steps
POLL_S = 0.01  # while there is nothing but a piece of a prompt that is computed aside
PROGRESS_S = 0.5  # between two reports of how far a long prompt is
TOKENS_TIDIED = 32  # of a step, for a piece of what is kept that is copied to the shelf: in 3 ms, new memory in 16
NOTHING = Delta()


@dataclass(frozen=True, slots=True)
class _Part:
    """What is computed of one job: an answer's next token, or a piece of a prompt."""

    job: Job
    chunk: Chunk
    prompt: bool = False


class Scheduler:
    """Continuous batching: each step takes the next token of every answer and a bounded piece of waiting prompts.

    A job whose sequence lacks one id decodes, one that lacks more has a prompt to compute: a new one, one that gave
    way, or the sentence that a used-up thinking budget forces. Prompts take turns. What runs is exact: the same
    Generation gets the rows that it would get alone. One thread calls all methods but `interrupt`.
    """

    def __init__(self, backend: Backend, parallel: int, clock: Callable[[], float] = time.perf_counter) -> None:
        """`parallel` answers run at a time, at most as many as the backend has sequences and rows for."""
        if not 1 <= parallel <= min(backend.sequences, backend.step_rows):
            raise EngineError(
                f"{parallel} answers side by side: the engine was loaded for {backend.sequences} sequences "
                f"and {backend.step_rows} rows a step"
            )
        self.waiting: list[Job] = []
        self.running: list[Job] = []  # in the order of admission
        self._backend = backend
        self._parallel = parallel
        self._clock = clock
        self._cache = PrefixCache(backend)
        self._paces = {beside: Pace(backend.step_tokens) for beside in (False, True)}  # a piece that is computed aside
        self._capacity = backend.room()
        self._full = False  # somebody gave way, and nobody has ended since
        self._turn = 0
        self._counts = Counter[str]()
        self._events: list[Event] = []
        self._computing: set[int] = set()  # numbers of the jobs in the running forward
        self._guard = threading.Lock()  # of `_computing`
        self._aside: _Part | None = None  # a piece of a prompt that is computed beside the steps
        self._handing_over: Logits | None = None  # its logits, when it is done and what is aside goes to its sequence
        self._aside_started = 0.0

    @property
    def idle(self) -> bool:
        """Nothing to do until the next `add`."""
        return not self.waiting and not self.running

    @property
    def load(self) -> EngineLoad:
        """What runs and waits, and the counts so far."""
        kv_tokens = self._capacity - self._backend.room()
        return EngineLoad(
            len(self.running), len(self.waiting), kv_tokens=kv_tokens, kv_capacity=self._capacity, **self._counts
        )

    def add(self, job: Job) -> None:
        """Let a job wait for its turn."""
        self.waiting.append(job)

    def cancel(self, number: int) -> None:
        """Forget a job, if it is here at all; what it has computed stays cached."""
        self._counts["cancelled"] += 1
        for job in (*self.waiting, *self.running):
            if job.number == number:
                self._remove(job)

    def interrupt(self, numbers: Collection[int]) -> None:
        """From any thread: stop the forward that runs now if it computes for none but these jobs."""
        with self._guard:
            if self._computing and self._computing.issubset(numbers):
                self._backend.interrupt()

    def step(self) -> list[Event]:
        """Compute one step; what it made visible, and the ends of answers."""
        self._events = events = list[Event]()
        self._end_late()
        handed_over = self._collect()
        self._admit()
        parts = self._parts()
        while parts and not self._fits(parts):
            parts = self._parts()
        if parts:
            if not handed_over:  # which took its time
                self._cache.tidy(max(1, sum(len(part.chunk.ids) for part in parts) // TOKENS_TIDIED))
            self._compute(parts)
        elif self._aside is not None and self._backend.aside is not None:
            self._backend.aside.wait(POLL_S)
        return events

    def rest(self) -> bool:
        """While nothing runs: prepare a little for what comes next; False when all is done."""
        return self._cache.copy_one()

    def _end_late(self) -> None:
        now = self._clock()
        for job in (*self.waiting, *self.running):
            if job.deadline <= now:
                self._end(job, "length")

    def _admit(self) -> None:
        """Start what waits: first who gave way, then whose owner has least running, then who came first."""
        while self.waiting and len(self.running) < self._parallel and not (self._full and self.running):
            owners = Counter(job.owner for job in self.running)
            job = min(self.waiting, key=lambda job: (job.cached_tokens is None, owners[job.owner], job.number))
            taken = self._cache.take(job.owner, job.ids, HEADROOM * len(self.running))
            if taken is None and self.running:
                return  # nobody overtakes: room comes when an answer ends
            if taken is None:
                self._has_no_room(job)
                continue
            job.sequence, cached = taken
            if job.cached_tokens is None:
                job.cached_tokens, job.started = cached, self._clock()
                self._counts["cached_tokens"] += cached
            self._turn += 1
            job.turn = self._turn
            self.waiting.remove(job)
            self.running.append(job)

    def _parts(self) -> list[_Part]:
        """The next step: every answer's next token, then prompts as far as the pace allows."""
        aside = self._aside.job if self._aside is not None else None  # its next token may be all that it lacks
        decoding = [job for job in self.running if self._behind(job) == 1 and job is not aside]
        prompts = sorted((job for job in self.running if self._behind(job) > 1), key=lambda job: job.turn)
        prompts = [job for job in prompts if not self._goes_aside(job, decoding)]
        parts = [_Part(job, Chunk(job.sequence, job.ids[-1:])) for job in decoding]
        allowance = self._paces[self._aside is not None].allowance(len(decoding))
        for job in prompts:
            if not allowance:
                break
            self._share(job)
            if any(self._computes_for(part, job) for part in self._under_way(parts)):
                continue
            chunk = self._piece(job, allowance)
            parts.append(_Part(job, chunk, prompt=True))
            allowance -= len(chunk.ids)
        return parts

    def _goes_aside(self, job: Job, decoding: list[Job]) -> bool:
        """Whether a prompt is none of this step's: it is computed aside, or waits until it can be."""
        aside = self._backend.aside
        if self._aside is not None and self._aside.job is job:
            return True
        if aside is None or not decoding or self._behind(job) <= ASIDE_MIN:
            return False
        if self._aside is None:
            self._start_aside(job, aside)
        return True

    def _start_aside(self, job: Job, aside: Aside) -> None:
        self._share(job)
        try:
            self._compute_aside(job, aside)
        except EngineError as error:
            self._fail(job, error)

    def _compute_aside(self, job: Job, aside: Aside) -> None:
        part = _Part(job, self._piece(job, aside.step_tokens), prompt=True)
        aside.start(part.chunk, job.owner)
        self._aside, self._aside_started = part, self._clock()

    def _collect(self) -> bool:
        """Where a piece that was computed aside is done: go on there, or take over what is there, a piece a step.

        True where one was taken over.
        """
        aside, part = self._backend.aside, self._aside
        if aside is None or part is None or aside.running:
            return False
        try:
            if self._handing_over is not None or self._finish_aside(aside, part):
                return self._hand_over(aside, part)
        except EngineError as error:
            self._fail(part.job, error)
        return False

    def _finish_aside(self, aside: Aside, part: _Part) -> bool:
        """Whether a piece was the last one that is computed aside, for now."""
        job, logits = part.job, aside.finish()
        job.engine_s += self._clock() - self._aside_started
        self._counts["prompt_tokens"] += len(part.chunk.ids)
        others = [self._behind(other) for other in self.running if other is not job]
        if part.chunk.rows == "none" and others and max(others) == 1:  # answers run, and no other prompt waits for it
            self._progress(job)
            self._compute_aside(job, aside)
            return False
        self._handing_over = logits
        return True

    def _hand_over(self, aside: Aside, part: _Part) -> bool:
        tokens = min(aside.ahead, aside.step_tokens)
        if not self._cache.make_room(tokens):
            self._give_way()  # the next step tries again, unless it was this one
            return False
        try:
            aside.hand_over(tokens)
        except NoRoomError:  # though it was counted; the next step tries again
            if not self._cache.drop():
                self._give_way()
            return False
        if not aside.ahead and self._handing_over is not None:
            logits, self._aside, self._handing_over = self._handing_over, None, None
            self._advance(part, logits)
        return True

    def _under_way(self, parts: list[_Part]) -> list[_Part]:
        return parts if self._aside is None else [*parts, self._aside]

    def _share(self, job: Job) -> None:
        """Take what others of the same owner have computed of this prompt in the meantime."""
        job.reached = max(job.reached, self._backend.length(job.sequence))
        self._cache.extend(job.sequence, job.ids[:-1])
        gained = self._backend.length(job.sequence) - job.reached
        if job.prompt_s is None and gained > 0:
            job.cached_tokens = (job.cached_tokens or 0) + gained
            self._counts["cached_tokens"] += gained

    def _piece(self, job: Job, allowance: int) -> Chunk:
        held = self._computed(job)
        ids = job.ids[held : held + allowance]
        return Chunk(job.sequence, ids, "last" if held + len(ids) == len(job.ids) else "none")

    def _computed(self, job: Job) -> int:
        """Tokens of it, in its sequence and aside."""
        aside = self._backend.aside if self._aside is not None and self._aside.job is job else None
        return self._backend.length(job.sequence) + (aside.ahead if aside is not None else 0)

    def _behind(self, job: Job) -> int:
        return len(job.ids) - self._backend.length(job.sequence)

    def _computes_for(self, part: _Part, job: Job) -> bool:
        """Whether a part of this step makes what `job` would compute next and can share in the next step."""
        if part.job.owner != job.owner:
            return False
        end = self._computed(part.job) + len(part.chunk.ids)
        shared = common_prefix(part.job.ids[:end], job.ids[:-1])
        return shared > self._backend.length(job.sequence)

    def _fits(self, parts: list[_Part]) -> bool:
        """Make room for a step; where there is none the youngest job gives way, and the step is another one."""
        if self._cache.make_room(sum(len(part.chunk.ids) for part in parts)):
            return True
        self._give_way()
        return False

    def _give_way(self) -> None:
        """Take the youngest job's sequence for the others; it computes later what it loses of it."""
        job = self.running[-1]
        if len(self.running) == 1:
            self._has_no_room(job)
            return
        self._remove(job)
        self.add(job)
        self._full = True

    def _has_no_room(self, job: Job) -> None:
        """End a job for which the pool is too small although it has it for itself."""
        if job.prompt_s is None:
            self._fail(job, NoRoomError(f"the KV cache of {self._capacity} tokens cannot hold this prompt"))
        else:
            self._end(job, "length")

    def _compute(self, parts: list[_Part]) -> None:
        started, native_s = self._clock(), self._backend.native_s
        try:
            rows = self._forward(parts)
        except InterruptedForwardError:
            return  # the cancellation that asked for it comes before the next step
        except NoRoomError:  # though it was counted
            if not self._cache.drop():
                self._give_way()
            return
        except EngineError as error:
            for part in parts:
                self._fail(part.job, error)
            return
        prompt_tokens = sum(len(part.chunk.ids) for part in parts if part.prompt)
        answers, pace = sum(not part.prompt for part in parts), self._paces[self._aside is not None]
        pace.measured(answers, prompt_tokens, self._clock() - started)
        self._counts["prompt_tokens"] += prompt_tokens
        for part, logits in zip(parts, rows, strict=True):
            part.job.engine_s += self._backend.native_s - native_s
            self._advance(part, logits)

    def _forward(self, parts: list[_Part]) -> list[Logits]:
        with self._guard:
            self._computing = {part.job.number for part in parts}
        try:
            return self._backend.forward([part.chunk for part in parts])
        finally:
            with self._guard:
                self._computing = set()
                self._backend.resume()

    def _advance(self, part: _Part, logits: Logits) -> None:
        job = part.job
        if part.chunk.rows == "none":
            self._progress(job)
            return
        if job.prompt_s is None:
            job.prompt_s = self._clock() - job.started
        try:
            delta = job.generation.step(logits[-1])
        except EdgeqwenError as error:
            self._fail(job, error)
            return
        except Exception as error:
            logger.exception("an answer failed")
            self._fail(job, EngineError(f"the answer failed: {error!r}"))  # the others go on
            return
        self._counts["answer_tokens"] += len(job.generation.next_ids)
        if job.generation.finish_reason is not None:
            self._finish(job, delta)
            return
        job.ids.extend(job.generation.next_ids)
        if delta != NOTHING:
            self._events.append((job.number, delta))

    def _progress(self, job: Job) -> None:
        """A piece of a prompt is done, and another prompt has its turn."""
        self._turn += 1
        job.turn = self._turn
        now = self._clock()
        if job.prompt_s is None and now - max(job.reported, job.started) >= PROGRESS_S:
            job.reported = now
            done = (self._computed(job), job.prompt_tokens)
            self._events.append((job.number, Delta(prompt_progress=done)))

    def _end(self, job: Job, reason: FinishReason) -> None:
        self._finish(job, job.generation.end(reason))

    def _finish(self, job: Job, delta: Delta) -> None:
        self._remove(job)
        usage = replace(job.generation.usage, cached_tokens=job.cached_tokens or 0)
        prompt_s = job.prompt_s or 0.0
        decode_s = self._clock() - job.started - prompt_s if prompt_s else 0.0
        drawn = job.generation.drawn_tokens
        timings = Timings.of(usage, drawn, prompt_s=prompt_s, decode_s=decode_s, engine_s=job.engine_s)
        self._events.append((job.number, replace(delta, usage=usage, timings=timings)))

    def _fail(self, job: Job, error: EdgeqwenError) -> None:
        self._remove(job)
        self._events.append((job.number, error))

    def _remove(self, job: Job) -> None:
        """Out of the queue, or out of its sequence, which stays cached."""
        if job in self.waiting:
            self.waiting.remove(job)
            return
        if self._aside is not None and self._aside.job is job and self._backend.aside is not None:
            self._backend.aside.drop()
            self._aside = self._handing_over = None
        self.running.remove(job)
        self._full = False
        job.reached = max(job.reached, self._backend.length(job.sequence))
        self._cache.release(job.sequence, job.prompt_tokens)
        job.sequence = -1
