"""The engine behind its protocol, in this process and in a child: one body for both; and a child that dies."""

import asyncio
import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted_model import NO_END, model_saying

from edgeqwen import load
from edgeqwen.errors import (
    BusyError,
    ContextOverflowError,
    EdgeqwenError,
    EngineDownError,
    EngineError,
    NoRoomError,
    RequestError,
)
from edgeqwen.model import fold
from edgeqwen.server import isolated
from edgeqwen.server.engine import LocalEngine
from edgeqwen.server.frames import frame, frames, plain, plain_error, typed, typed_error
from edgeqwen.server.isolated import IsolatedEngine
from edgeqwen.server.request import EngineInfo, EngineLoad, EngineSettings, Request
from edgeqwen.types import (
    Delta,
    GenerationConfig,
    Message,
    Timings,
    TokenLogprob,
    ToolCall,
    ToolCallDelta,
    Usage,
)

LONG = "Tell me everything about rivers. " * 10
HANGS_S = 200  # nothing here takes a tenth of that alone


def asking(text="What is 12 + 30?", *, owner="", seconds=None, tools=(), **options):
    config = GenerationConfig(**{"thinking": False, "temperature": 0.0, "max_tokens": 40, **options})
    return Request((Message("user", text),), tuple(tools), config=config, owner=owner, seconds=seconds)


async def whole(engine, request):
    return fold([delta async for delta in engine.answer(request)])


async def until(condition):
    """Let the loop run until something has happened; the time-out of the test bounds it."""
    while not condition():  # noqa: ASYNC110 - what is waited for has no event
        await asyncio.sleep(0.001)


async def first(stream):
    """Wait for the first delta that shows something."""
    async for delta in stream:
        if delta.content or delta.thinking:
            return delta
    raise AssertionError("the answer ended")


def endless(**options):
    """An answer that runs until the context is full."""
    return asking("Count.", max_tokens=None, loop_guard=False, logit_bias=NO_END, **options)


@pytest.fixture(scope="module")
def settings(nano_artifact):
    return EngineSettings(
        str(nano_artifact("f32")),
        context_length=1024,
        threads=1,  # two wait for each other in loops: 30 times as long where another program has a core
        kv_type="f32",
        parallel=4,
        waiting_max=12,
        engine="llamacpp",
    )


@pytest.fixture(params=[LocalEngine, IsolatedEngine], ids=["in this process", "in a child"])
def run(request, settings):
    """Run a coroutine function with a started engine."""

    def runner(body, **changes):
        async def main():
            engine = request.param(replace(settings, **changes))
            await engine.start()
            try:
                return await asyncio.wait_for(body(engine), HANGS_S)
            finally:
                await engine.close()

        return asyncio.run(main())

    return runner


def test_answers_are_the_librarys(run, settings):
    questions = [f"What is {i} + {10 - i}?" for i in range(8)]
    with load(settings.model, context_length=1024, threads=1, kv_type="f32", engine="llamacpp") as model:
        expected = [model.chat(q, thinking=False, temperature=0.0, max_tokens=40) for q in questions]

    async def body(engine):
        return await asyncio.gather(*(whole(engine, asking(q)) for q in questions))

    for ours, theirs in zip(run(body), expected, strict=True):
        assert (ours.content, ours.finish_reason) == (theirs.content, theirs.finish_reason)
        assert ours.usage.completion_tokens == theirs.usage.completion_tokens
        assert ours.timings.prompt_s > 0


def test_everything_an_answer_can_hold_comes_through(run, settings):
    tools = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
    request = asking("What is 2 + 2?", tools=tools, thinking=True, logprobs=2, seed=4, temperature=0.7)
    with load(settings.model, context_length=1024, threads=1, kv_type="f32", engine="llamacpp") as model:
        theirs = model.chat(
            "What is 2 + 2?", tools=tools, thinking=True, logprobs=2, seed=4, temperature=0.7, max_tokens=40
        )

    async def body(engine):
        return await whole(engine, request)

    ours = run(body)
    assert replace(ours, timings=Timings(), usage=Usage()) == replace(theirs, timings=Timings(), usage=Usage())
    assert ours.logprobs


def test_a_shape_holds_in_the_child_as_in_the_library(run, settings):
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99}},
        "required": ["n"],
    }
    options = {"schema": schema, "thinking_budget": 10, "temperature": 0.0, "max_tokens": 90, "thinking": True}
    with load(settings.model, context_length=1024, threads=1, kv_type="f32", engine="llamacpp") as model:
        theirs = model.chat("What is 2 + 2?", **options)

    async def body(engine):
        with pytest.raises(RequestError, match=r"^schema cannot be kept to"):
            await whole(engine, asking("?", schema={"type": "string", "pattern": "("}))
        return await whole(engine, asking("What is 2 + 2?", **options))

    ours = run(body)
    assert (ours.thinking, ours.content, ours.finish_reason) == (theirs.thinking, theirs.content, "stop")
    assert 0 <= json.loads(ours.content)["n"] <= 99


def test_a_text_is_continued_as_it_is(run):
    async def body(engine):
        config = GenerationConfig(temperature=0.0, max_tokens=12)
        by_text = await whole(engine, Request(prompt="The capital of France", config=config))
        ids = [delta async for delta in engine.answer(Request(prompt=(5, 6, 7), config=config))]
        with pytest.raises(RequestError, match="empty"):
            await whole(engine, Request(prompt="", config=config))
        with pytest.raises(RequestError, match=r"0\.\.4095"):
            await whole(engine, Request(prompt=(5, 4096), config=config))
        return by_text, fold(ids)

    by_text, by_ids = run(body)
    assert by_text.usage.completion_tokens > 0
    assert by_ids.usage.prompt_tokens == 3
    assert by_text.thinking == by_ids.thinking == ""


def test_what_cannot_be_asked_is_said_before_the_first_delta(run):
    async def body(engine):
        with pytest.raises(RequestError, match="temperature"):
            await whole(engine, asking(temperature=-1.0))
        with pytest.raises(RequestError, match="messages"):
            await whole(engine, Request())
        with pytest.raises(ContextOverflowError) as error:
            await whole(engine, asking("word " * 2000))
        assert error.value.context_length == 1024
        assert error.value.prompt_tokens > 1024
        return (await whole(engine, asking())).finish_reason

    assert run(body) == "stop"


def test_info_and_load(run, settings):
    async def body(engine):
        assert engine.state == "ready"
        assert engine.info == EngineInfo("nano", "llamacpp", 1024, 4096, 4, thinks=True)
        assert engine.load().running == 0
        streams = [engine.answer(endless()) for _ in range(6)]
        tasks = [asyncio.create_task(first(stream)) for stream in streams]
        await until(lambda: (engine.load().running, engine.load().queued) == (4, 2))
        busy = engine.load()
        assert 0 < busy.kv_tokens < busy.kv_capacity
        for task, stream in zip(tasks, streams, strict=True):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            await stream.aclose()
        await until(lambda: not engine.load().running and not engine.load().queued)
        assert engine.load().cancelled >= 4
        await whole(engine, asking(LONG))
        again = await whole(engine, asking(LONG))
        assert again.usage.cached_tokens > 50
        return engine.load()

    done = run(body)
    assert done.cached_tokens > 50
    assert done.answer_tokens > 0
    assert done.prompt_tokens > 50


def test_a_full_queue_says_when_to_come_back(run):
    async def body(engine):
        streams = [engine.answer(endless()) for _ in range(6)]
        tasks = [asyncio.create_task(first(stream)) for stream in streams]
        await until(lambda: (engine.load().running, engine.load().queued) == (4, 2))
        with pytest.raises(BusyError) as error:
            await whole(engine, asking())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return error.value

    error = run(body, waiting_max=2)
    assert 1 <= error.retry_after_s <= 600
    assert "2 requests are waiting" in str(error)


def test_time_that_is_up_ends_an_answer(run):
    async def body(engine):
        return await whole(engine, replace(endless(), seconds=0.1))

    completion = run(body)
    assert completion.finish_reason == "length"
    assert completion.usage.completion_tokens < 990


def test_draining_ends_what_runs_and_takes_nothing_new(run):
    async def body(engine):
        running = asyncio.create_task(whole(engine, asking(max_tokens=100, logit_bias=NO_END)))
        await until(lambda: engine.load().running)
        drained = asyncio.create_task(engine.drain(30))
        await asyncio.sleep(0)
        assert engine.state == "draining"
        with pytest.raises(EngineDownError):
            await whole(engine, asking())
        await drained
        assert running.done()
        assert running.result().usage.completion_tokens > 50

    run(body)


def test_draining_has_an_end_and_closing_ends_the_rest(run):
    async def body(engine):
        streams = [engine.answer(endless()) for _ in range(5)]
        tasks = [asyncio.create_task(whole_of(stream)) for stream in streams]
        await until(lambda: engine.load().running)
        await engine.drain(0.01)
        assert not any(task.done() for task in tasks)
        await engine.close()
        return await asyncio.gather(*tasks, return_exceptions=True)

    ends = run(body)
    assert {type(end) for end in ends} == {EngineDownError}


async def whole_of(stream):
    return fold([delta async for delta in stream])


def test_a_thousand_aborted_answers_leave_nothing_behind(run, settings):
    """In all states: before they are prepared, queued, in their prompt, in their answer."""

    async def abort(engine, number):
        stream = engine.answer(endless(owner=str(number % 3)) if number % 2 else asking(LONG + str(number)))
        task = asyncio.create_task(first(stream))
        for _ in range(number % 7):
            await asyncio.sleep(0)
        if number % 5 == 0:
            with contextlib.suppress(BusyError):
                await task
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, BusyError):
            await task
        await stream.aclose()

    async def body(engine):
        expected = await whole(engine, asking())
        sizes = []
        for round_ in range(5):
            for start in range(0, 200, 8):
                await asyncio.gather(*(abort(engine, round_ * 200 + start + i) for i in range(8)))
            await until(lambda: not engine.load().running and not engine.load().queued)
            sizes.append((tracemalloc.get_traced_memory()[0], memory_of(engine)))
        again = await whole(engine, asking())
        return expected, again, sizes, engine.load()

    tracemalloc.start()
    try:
        expected, again, sizes, busy = run(body)
    finally:
        tracemalloc.stop()
    assert (again.content, again.finish_reason) == (expected.content, expected.finish_reason)
    assert busy.cancelled > 600
    assert sizes[-1][0] - sizes[1][0] < 300_000, sizes
    assert sizes[-1][1] - sizes[1][1] < 8 << 20, sizes


def memory_of(engine):
    """Resident bytes of the child; of this process they say too little."""
    pid = getattr(engine, "pid", None)
    return psutil.Process(pid).memory_info().rss if pid else 0


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(isolated, "BACKOFF_S", 0.01)


@pytest.mark.usefixtures("quick")
def test_a_killed_child_is_started_again(settings):
    async def main():
        engine = IsolatedEngine(settings)
        await engine.start()
        expected = await whole(engine, asking())
        before = engine.load()
        streams = [engine.answer(endless()) for _ in range(6)]
        tasks = [asyncio.create_task(whole_of(stream)) for stream in streams]
        await until(lambda: engine.load().running == 4)
        pid = engine.pid
        os.kill(pid, signal.SIGKILL)
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(end) for end in ends} == {EngineDownError}
        assert "started again" in str(ends[0])
        assert engine.state == "broken"
        with pytest.raises(EngineDownError, match="broken"):
            await whole(engine, asking())
        assert engine.load().running == 0
        await until(lambda: engine.state == "ready")
        assert engine.pid != pid
        again = await whole(engine, asking())
        assert again.content == expected.content
        load = engine.load()
        assert load.restarts == 1
        assert load.answer_tokens > before.answer_tokens  # the counts go on
        await engine.close()
        return pid

    pid = asyncio.run(asyncio.wait_for(main(), HANGS_S))
    assert not psutil.pid_exists(pid)


@pytest.mark.usefixtures("quick")
def test_a_child_that_dies_again_and_again_is_tried_again_and_again(settings):
    async def main():
        engine = IsolatedEngine(settings)
        await engine.start()
        for deaths in range(1, 4):
            os.kill(engine.pid, signal.SIGKILL)
            await until(lambda: engine.state == "broken")
            await until(lambda: engine.state == "ready")
            assert engine.load().restarts == deaths
            assert (await whole(engine, asking())).finish_reason == "stop"
        await engine.close()

    asyncio.run(asyncio.wait_for(main(), HANGS_S))


@pytest.mark.usefixtures("quick")
def test_closing_while_the_child_is_started_again(settings):
    async def main():
        engine = IsolatedEngine(settings)
        await engine.start()
        os.kill(engine.pid, signal.SIGKILL)
        await until(lambda: engine.state == "broken")
        await engine.close()
        assert not psutil.pid_exists(engine.pid)

    asyncio.run(asyncio.wait_for(main(), HANGS_S))


def test_what_cannot_be_loaded_is_the_librarys_error(tmp_path, settings):
    async def start(**changes):
        await IsolatedEngine(replace(settings, **changes)).start()

    with pytest.raises(RequestError, match="no model"):
        asyncio.run(start(model=str(tmp_path / "absent")))
    with pytest.raises(RequestError, match="context_length"):
        asyncio.run(start(context_length=1 << 20))


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("import sys; print('no library', file=sys.stderr); sys.exit(7)", "exit code 7.*no library"),
        (
            "import sys; print('ASSERT(1) failed' + '\\n  File \"x\", line 1' * 40, file=sys.stderr); sys.exit(7)",
            "exit code 7.: ASSERT.1. failed$",
        ),
        ("import sys; sys.stdout.write('what is this, then? not a frame'); sys.stdout.flush(); input()", "announced"),
        ("import sys; sys.stdout.buffer.write(bytes((0, 0, 0, 2)) + b'[]'); sys.stdout.flush(); input()", "object"),
        ("import sys; sys.stdout.buffer.write(bytes((0, 0, 0, 9)) + b'{\"ready\":1}'[:9])", "no JSON"),
    ],
)
def test_a_child_that_is_none_is_an_error(settings, program, words):
    async def main():
        await IsolatedEngine(settings, (sys.executable, "-c", program)).start()

    with pytest.raises(EngineDownError, match=f"(?s){words}"):
        asyncio.run(asyncio.wait_for(main(), HANGS_S))


PARENT = """
import asyncio, sys
from edgeqwen.server.isolated import IsolatedEngine
from edgeqwen.server.request import EngineSettings
async def main():
    engine = IsolatedEngine(EngineSettings(sys.argv[1], context_length=256, threads=1))
    await engine.start()
    print(engine.pid, flush=True)
    await asyncio.sleep(100)
asyncio.run(main())
"""


def test_the_child_ends_when_its_parent_is_killed(settings):
    parent = subprocess.Popen([sys.executable, "-c", PARENT, settings.model], stdout=subprocess.PIPE, text=True)
    with parent:
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    child.wait(20)


@pytest.mark.skipif(sys.platform == "win32", reason="signals of a terminal")
def test_the_child_leaves_signals_of_the_group_to_its_parent(settings):
    async def main():
        engine = IsolatedEngine(settings)
        await engine.start()
        os.kill(engine.pid, signal.SIGINT)
        os.kill(engine.pid, signal.SIGTERM)
        completion = await whole(engine, asking())
        await engine.close()
        return completion

    assert asyncio.run(main()).finish_reason == "stop"


def test_an_engine_that_is_not_there_says_so(settings):
    async def main(kind):
        engine = kind(settings)
        assert engine.state == "loading"
        with pytest.raises(EngineDownError, match="loading"):
            await whole(engine, asking())
        await engine.close()

    for kind in (LocalEngine, IsolatedEngine):
        asyncio.run(main(kind))


def test_a_scheduler_that_fails_breaks_the_engine_and_no_reader_waits_for_ever(settings):
    def fails(ids):
        raise ZeroDivisionError

    async def main():
        engine = LocalEngine(replace(settings, parallel=1), lambda _: model_saying(fails))
        await engine.start()
        ends = await asyncio.gather(*(whole(engine, asking(str(i))) for i in range(3)), return_exceptions=True)
        assert {type(end) for end in ends} == {EngineDownError}
        assert engine.state == "broken"
        with pytest.raises(EngineDownError, match="broken"):
            await whole(engine, asking())
        await engine.close()

    asyncio.run(main())


texts = st.text(st.characters(), max_size=20)
numbers = st.integers(0, 2**40)
deltas = st.builds(
    Delta,
    thinking=texts,
    content=texts,
    tool_calls=st.lists(st.builds(ToolCallDelta, numbers, texts, texts, texts), max_size=3).map(tuple),
    logprobs=st.lists(
        st.builds(
            TokenLogprob, texts, st.binary(max_size=8), st.floats(allow_nan=False),
            st.lists(st.tuples(texts, st.floats(allow_nan=False)), max_size=3).map(tuple),
        ),
        max_size=3,
    ).map(tuple),
    prompt_progress=st.none() | st.tuples(numbers, numbers),
    finish_reason=st.sampled_from([None, "stop", "length", "tool_calls", "loop"]),
    usage=st.none() | st.builds(Usage, numbers, numbers, numbers, numbers),
    timings=st.none() | st.builds(Timings, *[st.floats(0, 1e9)] * 5),
)  # fmt: skip
json_values = st.recursive(
    st.none() | st.booleans() | numbers | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
chats = st.builds(
    Request,
    messages=st.lists(
        st.builds(
            Message, st.sampled_from(["system", "user", "assistant", "tool"]), texts, st.none() | texts,
            st.lists(st.builds(ToolCall, texts, texts, texts), max_size=2).map(tuple), st.none() | texts,
        ),
        max_size=3,
    ).map(tuple),
    tools=st.lists(st.dictionaries(texts, json_values, max_size=3), max_size=2).map(tuple),
    prompt=st.none() | texts | st.lists(numbers, max_size=5).map(tuple),
    config=st.builds(
        GenerationConfig,
        thinking=st.none() | st.booleans(),
        max_tokens=st.none() | numbers,
        temperature=st.none() | st.floats(0, 2) | st.integers(0, 2),
        logit_bias=st.dictionaries(numbers, st.floats(-100, 100), max_size=3),
        stop=st.lists(texts, max_size=3).map(tuple),
        loop_guard=st.booleans(),
    ),
    owner=texts,
    seconds=st.none() | st.floats(0, 100),
)  # fmt: skip


def through(value):
    """A value as it is on the other side."""
    (data,) = frames(io.BytesIO(frame({"value": plain(value)})))
    return typed(type(value), data["value"])


@given(deltas)
def test_deltas_cross_unchanged(delta):
    assert through(delta) == delta


@given(chats)
def test_requests_cross_unchanged(request):
    assert through(request) == request


@pytest.mark.parametrize(
    "error",
    [ContextOverflowError(5, 4), BusyError(3, 7), RequestError("no"), NoRoomError("full"), EngineDownError("gone")],
)
def test_errors_cross_with_their_type_and_figures(error):
    (data,) = frames(io.BytesIO(frame(plain_error(error))))
    crossed = typed_error(data)
    assert type(crossed) is type(error)
    assert str(crossed) == str(error)
    assert vars(crossed) == vars(error)


@pytest.mark.parametrize(
    "data",
    [None, [], {}, {"type": "SystemExit", "text": "x", "figures": {}}, {"type": "annotations", "text": "x"},
     {"type": "BusyError", "text": "x", "figures": {"retry_after_s": "soon"}}, {"type": 5, "text": "", "figures": {}}],
)  # fmt: skip
def test_errors_that_are_none_become_engine_errors(data):
    assert isinstance(typed_error(data), EngineError)


@given(json_values, st.sampled_from([Delta, Request, EngineLoad, EngineInfo, EngineSettings]))
def test_what_does_not_fit_a_type_is_refused(data, kind):
    with contextlib.suppress(EdgeqwenError):
        assert isinstance(typed(kind, data), kind)


@pytest.mark.parametrize(
    "data",
    [{"content": 5}, {"content": None}, {"usage": {"prompt_tokens": True}}, {"usage": {"prompt_tokens": 1.0}},
     {"finish_reason": "maybe"}, {"prompt_progress": [1]}, {"unknown": 1}, {"tool_calls": {}}, "text", None],
)  # fmt: skip
def test_damaged_deltas_are_refused(data):
    with pytest.raises(EngineError):
        typed(Delta, data)


@given(st.binary(max_size=60))
def test_random_bytes_are_no_frames(data):
    with contextlib.suppress(EngineError):
        for value in frames(io.BytesIO(data)):
            assert isinstance(value, dict)


def test_frames_are_bounded_and_plain_json():
    with pytest.raises(EngineError, match="announced"):
        list(frames(io.BytesIO(b"\xff\xff\xff\xff")))
    with pytest.raises(EngineError, match="JSON"):
        frame({"a": object()})
    deep = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(EngineError, match="JSON"):
        frame({"a": deep})
    assert list(frames(io.BytesIO(frame({"a": 1}) + frame({"b": 2})[:-1]))) == [{"a": 1}]


def test_the_servers_process_holds_no_engine():
    """What IsolatedEngine needs is light: neither numpy nor the tokenizer nor an engine is imported."""
    code = "import sys, edgeqwen.server.isolated; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"numpy", "tokenizers", "llama_cpp", "jinja2"} & set(done.stdout.split())
    assert Path(isolated.__file__).exists()
