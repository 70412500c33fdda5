"""Answers side by side: each is what it would be alone, whatever the others do; nothing is computed twice."""

import random
from collections import defaultdict
from concurrent.futures import Executor, Future

import numpy as np
import pytest
from scripted_model import END, QWEN3, SHAPE, TOKENIZER, script

from edgeqwen.backends.llamacpp import LlamaCppBackend, LlamaCppSettings
from edgeqwen.backends.scripted import ScriptedBackend
from edgeqwen.backends.second_engine import SecondEngine
from edgeqwen.catalog import find
from edgeqwen.errors import EngineError, InterruptedForwardError, NoRoomError
from edgeqwen.language import Language, ModelCard
from edgeqwen.model import Model, fold
from edgeqwen.segments import Special
from edgeqwen.server.job import Job
from edgeqwen.server.pace import GAP, Pace
from edgeqwen.server.prefix_cache import PrefixCache
from edgeqwen.server.scheduler import Scheduler
from edgeqwen.types import Delta, GenerationConfig, Message

CARD = ModelCard("scripted", SHAPE, frozenset({END}))
LANGUAGE = Language(TOKENIZER, QWEN3, CARD)
SHARED = len(TOKENIZER.encode_segments([Special("<|im_start|>"), "user\n"]))  # by all questions
WORDS = ["the", "river", "and", "what", "of", "Paris", "12", "blue", "why", "how", "apples", "go", "town", "水", "it"]


def mixed_row(ids):
    """Logits that depend on every id and its place; an answer ends after some thirty of them."""
    rng = np.random.default_rng(hash(tuple(ids)) % 2**32)
    row = rng.standard_normal(4096).astype(np.float32)
    row[END] = 3.4
    return row


def backend_of(answer=mixed_row, *, aside=False, **settings):
    settings = {"context_length": 1024, "sequences": 8, **settings}
    backend = ScriptedBackend(answer, vocab_size=4096, **settings)
    if aside:
        side = ScriptedBackend(
            answer, vocab_size=4096, context_length=1024, sequences=2, pool_tokens=1024, step_tokens=40
        )
        backend.aside = SecondEngine(backend, side, threads=2, side_threads=1)
    return backend


def config(**options):
    return GenerationConfig(**{"max_tokens": 60, "thinking": False, **options})


def job_of(number, text, *, owner="", language=LANGUAGE, deadline=float("inf"), context_length=1024, **options):
    messages = text if isinstance(text, tuple) else (Message("user", text),)
    generation = language.answer(messages, (), config(**options), context_length=context_length)
    return Job(number, generation, owner, deadline)


def finish(scheduler, arrivals=(), steps=20_000):
    """Run to the end; (step, job) arrive meanwhile. Number -> its events."""
    events = defaultdict(list)
    arrivals = sorted(arrivals, key=lambda pair: pair[0])
    for step in range(steps):
        while arrivals and arrivals[0][0] <= step:
            scheduler.add(arrivals.pop(0)[1])
        if scheduler.idle and not arrivals:
            return events
        for number, event in scheduler.step():
            events[number].append(event)
    raise AssertionError(f"not done after {steps} steps")


def answer_of(events):
    completion = fold(events)
    return completion.thinking, completion.content, completion.finish_reason, completion.usage.completion_tokens


def requests(count, seed=0):
    """Questions of many lengths, some of which share their start, greedy and seeded."""
    rng = random.Random(seed)
    starts = ["", "You are a helper. " * 12]
    return [
        (
            rng.choice(starts) + " ".join(rng.choices(WORDS, k=rng.choice([3, 20, 120]))),
            {"temperature": 0.0} if number % 2 else {"seed": number, "temperature": 0.8},
        )
        for number in range(count)
    ]


def alone(model, asked):
    """What the library answers, one after another."""
    answers = []
    for text, options in asked:
        completion = model.chat(text, **{"max_tokens": 60, "thinking": False, **options})
        answers.append(
            (completion.thinking, completion.content, completion.finish_reason, completion.usage.completion_tokens)
        )
    return answers


def jobs_of(asked, *, owner=lambda number: "", language=LANGUAGE, context_length=1024):
    return [
        job_of(number, text, owner=owner(number), language=language, context_length=context_length, **options)
        for number, (text, options) in enumerate(asked)
    ]


@pytest.mark.parametrize(
    ("parallel", "pool", "sequences"),
    [(1, None, 1), (4, None, 4), (4, None, 12), (4, 1024, 12), (7, 1200, 8), (16, None, 20), (16, 1024, 16)],
)
@pytest.mark.parametrize("aside", [False, True], ids=["in steps", "aside"])
@pytest.mark.parametrize("swap_tokens", [0, 512, 4096])
def test_sixteen_answers_are_what_each_is_alone(parallel, pool, sequences, aside, swap_tokens):
    asked = requests(16)
    expected = alone(Model(backend_of(sequences=1), TOKENIZER, QWEN3, CARD), asked)
    backend = backend_of(sequences=sequences, pool_tokens=pool, step_tokens=64, aside=aside, swap_tokens=swap_tokens)
    rng = random.Random(parallel)
    arrivals = [(rng.randrange(80), job) for job in jobs_of(asked, owner=lambda number: "ab"[number % 2])]
    events = finish(Scheduler(backend, parallel), arrivals)
    assert [answer_of(events[number]) for number in range(16)] == expected
    assert len({answer[1] for answer in expected}) > 12  # they differ: a mix-up would show


@pytest.fixture(scope="module")
def nano(nano_artifact):
    return find(nano_artifact("f32"))


def nano_backend(nano, **settings):
    return LlamaCppBackend(
        nano.weights_path,
        LlamaCppSettings(1024, kv_type="f32", **{"threads": 1, "sequences": 20, "step_tokens": 128, **settings}),
    )


@pytest.mark.parametrize("aside", [0, 1], ids=["in steps", "aside"])
@pytest.mark.parametrize(("pool", "swap_tokens"), [(None, 0), (1024, 0), (1024, 4096)])
def test_sixteen_answers_of_nano_are_what_each_is_alone(nano, pool, swap_tokens, aside):
    card = ModelCard(nano.name, nano.shape, nano.end_ids)
    asked = [(f"What is {7 * i} + {i}?", {"temperature": 0.0}) for i in range(6)]
    asked += [
        (f"Spell the word {word}.", {"seed": len(word)})
        for word in ("planet", "river", "moon", "bridge", "garden", "bed")
    ]
    asked += [(f"Tell me about {word}. " * 20, {"seed": 3, "temperature": 1.0}) for word in WORDS[:4]]
    with Model(nano_backend(nano, sequences=1), nano.tokenizer, nano.template, card) as model:
        expected = alone(model, asked)
        language = model.language
    backend = nano_backend(
        nano, pool_tokens=pool, threads=1 + aside, aside_threads=aside, aside_tokens=48, swap_tokens=swap_tokens
    )
    scheduler = Scheduler(backend, 16)
    events = finish(scheduler, [(2 * n, job) for n, job in enumerate(jobs_of(asked, language=language))])
    backend.close()
    assert [answer_of(events[number]) for number in range(16)] == expected
    assert len({answer[1] for answer in expected}) > 10


def test_one_more_turn_pays_for_itself_alone():
    backend = backend_of()
    scheduler = Scheduler(backend, 2)
    history = (Message("system", "Be brief. " * 30), Message("user", "One?"))
    (first,) = finish(scheduler, [(0, job_of(1, history, temperature=0.0))]).values()
    turn = (*history, fold(first).message, Message("user", "Two?"))
    backend.forwarded.clear()
    (second,) = finish(scheduler, [(0, job_of(2, turn, temperature=0.0))]).values()
    usage = fold(second).usage
    assert usage.cached_tokens > 100
    computed = usage.prompt_tokens - usage.cached_tokens
    assert sum(tokens for _, tokens in backend.forwarded) == computed + usage.completion_tokens - 1
    assert computed < fold(first).usage.completion_tokens + 20
    fresh = alone(Model(backend_of(sequences=1), TOKENIZER, QWEN3, CARD), [(turn, {"temperature": 0.0})])
    assert answer_of(second) == fresh[0]


def test_a_prefix_that_is_being_computed_is_not_computed_twice():
    """Eight times the same long question at once: its prompt is paid for once."""
    backend = backend_of(step_tokens=32)
    prompt = "the same long question " * 20
    jobs = [job_of(number, prompt, seed=number, max_tokens=5) for number in range(8)]
    events = finish(Scheduler(backend, 8), [(0, job) for job in jobs])
    tokens = fold(events[0]).usage.prompt_tokens
    answered = sum(fold(events[number]).usage.completion_tokens for number in range(8))
    assert sum(count for _, count in backend.forwarded) <= tokens + answered + 8
    assert sum(fold(events[number]).usage.cached_tokens for number in range(8)) >= 7 * (tokens - 2)


def test_a_conversation_keeps_its_sequence_and_a_new_one_leaves_it_alone():
    backend = backend_of(sequences=3)
    scheduler = Scheduler(backend, 1)
    system = Message("system", "You are kind. " * 20)
    talks = [(system, Message("user", name)) for name in ("Ann", "Bob")]
    answers = []
    for number, talk in enumerate(talks):
        (events,) = finish(scheduler, [(0, job_of(number, talk, temperature=0.0))]).values()
        answers.append(fold(events))
    assert answers[1].usage.cached_tokens > 60  # the system prompt, by a copy
    for number, talk in enumerate(talks):
        turn = (*talk, answers[number].message, Message("user", "And then?"))
        (events,) = finish(scheduler, [(0, job_of(9 + number, turn, temperature=0.0))]).values()
        assert fold(events).usage.cached_tokens >= answers[number].usage.prompt_tokens - 8


def test_owners_share_nothing(monkeypatch):
    backend = backend_of(sequences=6)
    copied = []
    copy = backend.copy
    monkeypatch.setattr(backend, "copy", lambda *args: (copied.append(args), copy(*args)))
    scheduler = Scheduler(backend, 3)
    prompt = "a secret of some length, long enough to be worth a copy"
    jobs = [job_of(number, prompt, owner=owner, seed=1) for number, owner in enumerate(("ann", "bob", ""))]
    events = finish(scheduler, [(0, job) for job in jobs])
    assert [fold(events[number]).usage.cached_tokens for number in range(3)] == [0, 0, 0]
    assert not copied
    again = finish(scheduler, [(0, job_of(number + 3, prompt, owner=o)) for number, o in enumerate(("bob", "eve"))])
    assert fold(again[3]).usage.cached_tokens > 10
    assert fold(again[4]).usage.cached_tokens == 0


def test_whoever_floods_the_cache_pushes_out_his_own():
    backend = backend_of(sequences=8, pool_tokens=600)
    cache = PrefixCache(backend)

    def fill(owner, ids):
        sequence, held = cache.take(owner, ids, 0)
        backend.forward([_chunk(sequence, ids[held:])])
        cache.release(sequence, len(ids))
        return held

    fill("ann", list(range(100)))
    for start in range(100, 4000, 150):
        fill("bob", list(range(start, start + 150)))
    assert fill("ann", list(range(100))) == 99
    assert fill("bob", list(range(100))) == 0


def _chunk(sequence, ids):
    from edgeqwen.backends.base import Chunk

    return Chunk(sequence, ids, "none")


def test_least_recently_used_prefixes_go_first():
    backend = backend_of(sequences=3)
    scheduler = Scheduler(backend, 1)
    texts = ["first " * 20, "second " * 20, "third " * 20]
    for number, text in enumerate(texts):
        finish(scheduler, [(0, job_of(number, text, max_tokens=2))])
    finish(scheduler, [(0, job_of(4, texts[0], max_tokens=2))])  # used again
    finish(scheduler, [(0, job_of(5, "fourth " * 20, max_tokens=2))])
    cached = {}
    for number, text in enumerate((texts[0], texts[1])):
        (events,) = finish(scheduler, [(0, job_of(6 + number, text, max_tokens=2))]).values()
        cached[text] = fold(events).usage.cached_tokens
    assert cached[texts[0]] > 15
    assert cached[texts[1]] < 6


class Timed(ScriptedBackend):
    """A backend whose clock runs by its work: `cost(tokens)` seconds a step."""

    def __init__(self, cost, answer=mixed_row, **settings):
        super().__init__(answer, vocab_size=4096, **{"context_length": 4096, "sequences": 8, **settings})
        self.now, self.steps = 1.0, []
        self._cost = cost

    def forward(self, chunks):
        logits = super().forward(chunks)
        took = self._cost(sum(len(chunk.ids) for chunk in chunks), chunks)
        self.steps.append((took, tuple(len(chunk.ids) for chunk in chunks)))
        self.now += took
        return logits

    def clock(self):
        return self.now


def endless(ids):
    """An answer that never ends by itself."""
    row = mixed_row(ids)
    row[END] = -50
    return row


# Seconds of a step of so many tokens. The first is what llama.cpp took for Qwen3-0.6B Q4_0 on two cores.
COSTS = {
    "llama.cpp": lambda tokens, chunks: {1: 0.014, 2: 0.018, 3: 0.023}.get(tokens, 0.009 + 0.0023 * tokens),
    "linear": lambda tokens, chunks: 0.050 + 0.002 * tokens,
    "prompts cost as much as answers": lambda tokens, chunks: 0.010 * tokens,
    "growing": lambda tokens, chunks: 0.014 + 0.003 * tokens * (1 + chunks[-1].sequence),
}


@pytest.mark.parametrize("name", COSTS)
@pytest.mark.parametrize("answers", [1, 4])
def test_a_long_prompt_leaves_running_answers_their_pace(name, answers):
    backend = Timed(COSTS[name], endless, sequences=answers + 1)
    scheduler = Scheduler(backend, answers + 1, backend.clock)
    for number in range(answers):
        scheduler.add(job_of(number, f"question {number}", max_tokens=3000, context_length=4096))
    for _ in range(60):
        scheduler.step()
    plain = backend.steps[-1][0]
    scheduler.add(job_of(99, "word " * 1900, max_tokens=1, context_length=4096))
    first = len(backend.steps)
    while not any(number == 99 and event.finish_reason for number, event in scheduler.step()):
        assert len(backend.steps) < 5000
    during = backend.steps[first:]
    assert max(took for took, _ in during) <= 3 * plain
    assert all(sizes[:answers] == (1,) * answers for _, sizes in during)  # every answer gets a token every step
    used = sum(took for took, _ in during)
    assert used / len(during) > (1.5 if name == "llama.cpp" else 1.2) * plain  # and the prompt as much as that allows


class Waiting(Executor):
    """Does its work when it is told to."""

    def __init__(self):
        self.work = []

    def submit(self, fn, /, *args, **kwargs):
        self.work.append((Future(), fn, args))
        return self.work[-1][0]

    def do(self):
        future, fn, args = self.work.pop(0)
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(fn(*args))
            except EngineError as error:
                future.set_exception(error)


def beside_an_answer():
    """A scheduler in which an answer runs, with the executor of what is computed aside."""
    backend, executor = backend_of(endless, context_length=1024), Waiting()
    side = ScriptedBackend(endless, vocab_size=4096, context_length=1024, sequences=2, step_tokens=100)
    backend.aside = SecondEngine(backend, side, threads=2, side_threads=1, executor=executor)
    scheduler = Scheduler(backend, 4)
    scheduler.add(job_of(0, "question", max_tokens=900))
    for _ in range(5):
        scheduler.step()
    return backend, executor, scheduler


def test_a_long_prompt_beside_an_answer_is_computed_aside():
    backend, executor, scheduler = beside_an_answer()
    scheduler.add(job_of(1, "word " * 250, seed=1, max_tokens=1))
    backend.forwarded.clear()
    events = []
    for piece in range(3):
        for _ in range(10):
            events += scheduler.step()
        assert len(executor.work) == 1
        assert backend.aside.running
        assert (backend.length(1), backend.aside.ahead) == (SHARED, 100 * piece)  # no cells that slow the answer down
        executor.do()
    for _ in range(3):
        assert not any(number == 1 for number, _ in events)
        events += scheduler.step()
        assert len(executor.work) == 0
    assert set(backend.forwarded) == {(0, 1)}  # no step had anything but the answer's tokens
    (ended,) = [event for number, event in events if number == 1]
    expected = alone(Model(backend_of(endless, sequences=1), TOKENIZER, QWEN3, CARD), [
        ("word " * 250, {"seed": 1, "max_tokens": 1})
    ])  # fmt: skip
    assert answer_of([ended]) == expected[0]
    assert len([number for number, _ in events if number == 0]) > 25


def test_short_prompts_do_not_wait_for_what_is_computed_aside():
    _, executor, scheduler = beside_an_answer()
    scheduler.add(job_of(1, "word " * 250, max_tokens=1))
    scheduler.step()
    scheduler.add(job_of(2, "short", max_tokens=1))
    ended = [number for _ in range(30) for number, event in scheduler.step() if event.finish_reason]
    assert ended == [2]
    assert len(executor.work) == 1


def test_prompts_take_turns_aside():
    backend, executor, scheduler = beside_an_answer()
    for number, word in ((1, "one"), (2, "two")):
        scheduler.add(job_of(number, f"{word} " * 300, max_tokens=1))
    held = []
    for _ in range(6):
        scheduler.step()
        assert len(executor.work) == 1
        executor.do()
        scheduler.step()
        held.append((backend.length(1), backend.length(2)))
    assert [(one - SHARED, two - SHARED) for one, two in held[:4]] == [(100, 0), (100, 100), (200, 100), (200, 200)]


def test_the_last_token_of_a_prompt_is_computed_once_when_it_is_computed_aside():
    """The second of two like prompts gets all but its last token of the first one, and computes that aside."""
    _, executor, scheduler = beside_an_answer()
    prompt = "word " * 60
    for number in (1, 2):
        scheduler.add(job_of(number, prompt, seed=number, max_tokens=8))
    events = defaultdict(list)
    for step in range(40):
        for number, event in scheduler.step():
            events[number].append(event)
        if executor.work and step % 3 == 2:  # steps go on meanwhile
            executor.do()
    expected = alone(
        Model(backend_of(endless, sequences=1), TOKENIZER, QWEN3, CARD),
        [(prompt, {"seed": number, "max_tokens": 8}) for number in (1, 2)],
    )
    assert [answer_of(events[number]) for number in (1, 2)] == expected


@pytest.mark.parametrize("when", ["before it runs", "while it runs", "when it is done"])
def test_a_cancelled_prompt_is_not_computed_any_further(when):
    backend, executor, scheduler = beside_an_answer()
    scheduler.add(job_of(1, "word " * 250, max_tokens=1))
    scheduler.step()
    if when == "while it runs":
        future = executor.work[0][0]
        future.set_running_or_notify_cancel()
        backend.aside._side.interrupt = lambda: future.set_exception(InterruptedForwardError("stopped"))
    if when == "when it is done":
        executor.do()
    scheduler.cancel(1)
    assert not backend.aside.running
    assert len(scheduler.running) == 1
    held = backend.room()
    scheduler.step()
    assert backend.room() == held - 1
    executor.work.clear()
    scheduler.add(job_of(2, "word " * 250, max_tokens=1))
    while not any(number == 2 for number, _ in scheduler.step()):
        if executor.work:
            executor.do()


def test_what_fails_aside_ends_its_answer_alone():
    backend, executor, scheduler = beside_an_answer()
    scheduler.add(job_of(1, "word " * 250, max_tokens=1))
    scheduler.step()
    backend.aside._side.close()
    executor.work[0] = (executor.work[0][0], backend.aside._side.forward, executor.work[0][2])
    executor.do()
    events = scheduler.step()
    assert isinstance(dict(events)[1], EngineError)
    assert [job.number for job in scheduler.running] == [0]


def test_a_prompt_alone_is_not_held_back():
    backend = Timed(COSTS["llama.cpp"])
    scheduler = Scheduler(backend, 4, backend.clock)
    finish(scheduler, [(0, job_of(1, "word " * 700, max_tokens=1, context_length=4096))])
    assert [sizes for _, sizes in backend.steps] == [(512,), (sum(backend.forwarded[1][1:]),)]


def test_prompts_take_turns():
    """Of two long prompts beside an answer neither waits for the other's end."""
    backend = Timed(COSTS["llama.cpp"], endless)
    scheduler = Scheduler(backend, 3, backend.clock)
    scheduler.add(job_of(0, "question", max_tokens=3000, context_length=4096))
    for _ in range(10):
        scheduler.step()
    long, short = (job_of(n, f"{word} " * k, max_tokens=1) for n, word, k in ((1, "many", 600), (2, "few", 60)))
    scheduler.add(long)
    for _ in range(5):
        scheduler.step()
    scheduler.add(short)
    ended = []
    while len(ended) < 2:
        ended += [number for number, event in scheduler.step() if event.finish_reason]
    assert ended == [2, 1]


def test_who_has_nothing_running_is_served_before_a_crowd():
    scheduler = Scheduler(backend_of(endless), 2)
    for number in range(10):
        scheduler.add(job_of(number, f"crowd {number}", owner="crowd", max_tokens=20))
    for _ in range(3):
        scheduler.step()
    scheduler.add(job_of(99, "a single question", owner="single", max_tokens=20))
    ended = []
    while not scheduler.idle:
        ended += [number for number, event in scheduler.step() if event.finish_reason]
    assert set(ended[:4]) == {0, 1, 2, 99}  # two of the crowd ran when it came
    assert [number for number in ended if number != 99] == list(range(10))  # the crowd itself in its order


@pytest.mark.parametrize("aside", [False, True], ids=["in steps", "aside"])
def test_a_full_pool_makes_the_youngest_wait_and_loses_nothing(aside):
    texts = [(f"question {number} " * 12, {"seed": number, "max_tokens": 150}) for number in range(4)]
    expected = alone(Model(backend_of(endless, sequences=1), TOKENIZER, QWEN3, CARD), texts)
    backend = backend_of(endless, context_length=512, pool_tokens=512, aside=aside)
    scheduler = Scheduler(backend, 4)
    waited = 0
    for job in jobs_of(texts):
        scheduler.add(job)
    events = defaultdict(list)
    while not scheduler.idle:
        for number, event in scheduler.step():
            events[number].append(event)
        waited += any(job.cached_tokens is not None for job in scheduler.waiting)
        assert backend.room() >= 0
    assert waited > 10  # somebody gave way
    assert [answer_of(events[number]) for number in range(4)] == expected


def test_an_answer_that_fills_the_whole_pool_ends_by_length():
    backend = backend_of(endless, context_length=1024, pool_tokens=100)
    events = finish(Scheduler(backend, 1), [(0, job_of(1, "question", max_tokens=500))])
    completion = fold(events[1])
    assert completion.finish_reason == "length"
    assert 50 < completion.usage.completion_tokens < 100


def test_a_prompt_that_never_fits_is_an_error_and_the_next_one_runs():
    backend = backend_of(context_length=1024, pool_tokens=100)
    events = finish(Scheduler(backend, 2), [(0, job_of(1, "word " * 300)), (0, job_of(2, "short"))])
    assert isinstance(events[1][0], NoRoomError)
    assert fold(events[2]).finish_reason in {"stop", "length"}


def test_a_pool_that_is_smaller_than_its_count_is_survived():
    """Native code may find no room where the count has some."""

    class Tight(ScriptedBackend):
        def forward(self, chunks):
            if sum(self.length(s) for s in range(self.sequences)) > 300:
                raise NoRoomError("no slot")
            return super().forward(chunks)

    backend = Tight(endless, vocab_size=4096, context_length=512, sequences=4)
    asked = [(f"question {number}", {"seed": number, "max_tokens": 120}) for number in range(3)]
    events = finish(Scheduler(backend, 3), [(0, job) for job in jobs_of(asked)])
    expected = alone(Model(backend_of(endless, sequences=1), TOKENIZER, QWEN3, CARD), asked)
    assert [answer_of(events[number]) for number in range(3)] == expected


@pytest.mark.parametrize("aside", [False, True], ids=["in steps", "aside"])
@pytest.mark.parametrize("seed", range(4))
def test_a_thousand_cancellations_leave_cache_and_answers_right(seed, aside):
    rng = random.Random(seed)
    backend = backend_of(sequences=10, pool_tokens=2000, step_tokens=48, aside=aside)
    scheduler = Scheduler(backend, 5)
    asked = requests(40, seed)
    expected = alone(Model(backend_of(sequences=1), TOKENIZER, QWEN3, CARD), asked)
    kept, number = {}, 0
    events = defaultdict(list)
    while number < 500:
        if len(scheduler.waiting) < 6:
            which = rng.randrange(len(asked))
            text, options = asked[which]
            scheduler.add(job_of(number, text, owner=rng.choice("ab"), **options))
            if rng.random() < 0.15:
                kept[number] = which
            number += 1
        for done, event in scheduler.step():
            events[done].append(event)
        for job in (*scheduler.waiting, *scheduler.running):
            if job.number not in kept and rng.random() < 0.15:
                scheduler.cancel(job.number)
    for job in (*scheduler.waiting, *scheduler.running):
        if job.number not in kept:
            scheduler.cancel(job.number)
    for done, more in finish(scheduler).items():
        events[done] += more
    assert len(kept) > 20
    for number, which in kept.items():
        assert answer_of(events[number]) == expected[which]
    assert scheduler.load.cancelled > 250
    held = sum(backend.length(sequence) for sequence in range(10))
    assert scheduler.load.kv_tokens <= held
    finish(scheduler, [(0, job_of(999, "word " * 900, max_tokens=20))])  # the whole cache can be had again


def test_a_cancellation_stops_the_forward_that_computes_for_nobody_else():
    stopped = []

    class Slow(ScriptedBackend):
        def forward(self, chunks):
            if self.length(0) == 0 and not stopped:
                stopped.append(True)
                scheduler.interrupt({1})  # from another thread, in the middle of the native call
            return super().forward(chunks)

    backend = Slow(mixed_row, vocab_size=4096, context_length=1024, sequences=4)
    scheduler = Scheduler(backend, 2)
    scheduler.add(job_of(1, "word " * 300))
    assert scheduler.step() == []
    assert backend.forwarded == []
    scheduler.cancel(1)
    assert scheduler.idle
    events = finish(scheduler, [(0, job_of(2, "hello", seed=1))])
    expected = alone(Model(backend_of(sequences=1), TOKENIZER, QWEN3, CARD), [("hello", {"seed": 1})])
    assert answer_of(events[2]) == expected[0]


def test_a_cancellation_does_not_stop_what_others_wait_for():
    interrupted = []
    backend = backend_of()
    scheduler = Scheduler(backend, 2)
    backend.interrupt = lambda: interrupted.append(True)
    forward = backend.forward
    backend.forward = lambda chunks: (scheduler.interrupt({1}), forward(chunks))[1]
    events = finish(scheduler, [(0, job_of(1, "one", seed=1)), (0, job_of(2, "two", seed=2, max_tokens=500))])
    assert set(events) == {1, 2}
    alone_steps = len(interrupted)
    assert alone_steps == 0 or events[1][-1].finish_reason  # only once 1 ran by itself


def test_time_that_is_up_ends_an_answer_where_it_is():
    backend = Timed(lambda tokens, chunks: 0.1, endless)
    scheduler = Scheduler(backend, 1, backend.clock)
    jobs = [job_of(n, "question", max_tokens=500, deadline=backend.now + 2.0) for n in (1, 2)]
    events = finish(scheduler, [(0, job) for job in jobs])
    first, second = (fold(events[number]) for number in (1, 2))
    assert first.finish_reason == second.finish_reason == "length"
    assert 15 <= first.usage.completion_tokens <= 20
    assert second.usage.completion_tokens == 0  # it never ran
    assert second.timings.decode_tokens_per_s == 0


def test_a_long_prompt_tells_how_far_it_is():
    backend = Timed(lambda tokens, chunks: 1.0, step_tokens=64)
    scheduler = Scheduler(backend, 2, backend.clock)
    job = job_of(1, "word " * 300, max_tokens=3)
    events = finish(scheduler, [(0, job)])[1]
    told = [event.prompt_progress for event in events if event.prompt_progress]
    assert len(told) >= 3
    assert told == sorted(told)
    assert {total for _, total in told} == {job.prompt_tokens}
    assert all(event.prompt_progress is None for event in events[len(told) :])  # before anything else


def test_timings_count_the_steps_an_answer_was_in():
    backend = Timed(lambda tokens, chunks: 0.5, script("Hello there."))
    scheduler = Scheduler(backend, 2, backend.clock)
    completion = fold(finish(scheduler, [(0, job_of(1, "Hi", temperature=0.0))])[1])
    count = completion.usage.completion_tokens
    assert completion.timings.prompt_s == pytest.approx(0.5)
    assert completion.timings.decode_s == pytest.approx(0.5 * (count - 1))
    assert completion.timings.decode_tokens_per_s == pytest.approx(2.0)


def test_damaged_logits_end_one_answer_and_not_the_others():
    def damaged(ids):
        row = mixed_row(ids)
        return row * np.nan if TOKENIZER.encode("broken")[0] in ids else row

    events = finish(
        Scheduler(backend_of(damaged), 2), [(0, job_of(1, "broken", seed=1)), (0, job_of(2, "fine", seed=2))]
    )
    assert isinstance(events[1][-1], EngineError)
    expected = alone(Model(backend_of(sequences=1), TOKENIZER, QWEN3, CARD), [("fine", {"seed": 2})])
    assert answer_of(events[2]) == expected[0]


def test_a_fault_of_ours_ends_one_answer_and_not_the_others(monkeypatch):
    bad = job_of(1, "bad", seed=1)
    monkeypatch.setattr(bad.generation, "step", lambda row: 1 / 0)
    events = finish(Scheduler(backend_of(), 2), [(0, bad), (0, job_of(2, "fine", seed=2))])
    assert "ZeroDivisionError" in str(events[1][-1])
    assert fold(events[2]).finish_reason


def test_an_engine_that_fails_ends_the_answers_of_the_step_and_goes_on():
    backend = backend_of()
    scheduler = Scheduler(backend, 2)
    forward, calls = backend.forward, []

    def failing(chunks):
        calls.append(chunks)
        if len(calls) == 5:
            raise EngineError("it broke")
        return forward(chunks)

    backend.forward = failing
    events = finish(scheduler, [(0, job_of(1, "one", seed=1)), (0, job_of(2, "two", seed=2)), (9, job_of(3, "three"))])
    assert [str(events[number][-1]) for number in (1, 2)] == ["it broke", "it broke"]
    assert fold(events[3]).finish_reason


def test_a_used_up_thinking_budget_is_forced_beside_running_answers():
    """The forced sentence is a small prompt: it is computed in pieces, too, and the answer is what it is alone."""
    asked = [("think hard", {"thinking": True, "thinking_budget": 5, "seed": 4, "max_tokens": 90}), ("x", {"seed": 5})]
    expected = alone(Model(backend_of(endless, sequences=1), TOKENIZER, QWEN3, CARD), asked)
    events = finish(Scheduler(backend_of(endless), 2), [(0, job) for job in jobs_of(asked)])
    assert [answer_of(events[number]) for number in range(2)] == expected
    assert "Considering the limited time" in expected[0][0]


@pytest.mark.parametrize("parallel", [0, 9])
def test_more_answers_than_sequences_are_refused(parallel):
    with pytest.raises(EngineError, match=f"{parallel} answers"):
        Scheduler(backend_of(sequences=8), parallel)


def test_nothing_is_lost_or_doubled_in_a_stream():
    events = finish(Scheduler(backend_of(), 3), [(0, job_of(number, "count", seed=number)) for number in range(3)])
    for number in range(3):
        *pieces, last = events[number]
        assert last.finish_reason
        assert last.usage
        assert last.timings
        assert all(piece.finish_reason is None and piece != Delta() for piece in pieces)


def test_the_pace_waits_until_it_knows_what_a_step_takes():
    pace = Pace(512)
    assert pace.allowance(0) == 512
    assert pace.allowance(2) == 0
    pace.measured(2, 0, 0.05)
    pace.measured(2, 0, 0.05)
    assert pace.allowance(2) == 1


def test_the_pace_goes_down_where_steps_get_slower_and_up_again():
    pace = Pace(512)

    def drive(token_s, steps):
        taken = []
        for _ in range(steps):
            tokens = pace.allowance(1)
            seconds = 0.02 + token_s * tokens
            pace.measured(1, tokens, seconds)
            taken.append((tokens, seconds))
        return taken

    drive(0.001, 3)
    fast = drive(0.001, 200)
    assert fast[-2][0] >= 20
    slow = drive(0.005, 100)
    assert max(seconds for _, seconds in slow[20:]) <= GAP * 0.02
    again = drive(0.001, 300)
    assert max(tokens for tokens, _ in again[-40:]) >= 20
