"""A model on event loops and in many threads: nothing blocks the loop, who leaves ends the answer, nothing mixes."""

import asyncio
import contextlib
import threading

import pytest
from scripted_model import END, THOUGHT, TOKENIZER, model_saying

from edgeqwen import EngineError, InterruptedForwardError, RequestError
from edgeqwen.model import fold

WORD = TOKENIZER.encode("word ")[0]


class Gated:
    """An endless answer whose steps wait for the test: `step` lets so many be computed."""

    def __init__(self, length=1500):
        self.permits = threading.Semaphore(0)
        self.began = threading.Event()
        self.length = length

    def __call__(self, ids):
        self.began.set()
        assert self.permits.acquire(timeout=20)
        return WORD if len(ids) < self.length else END

    def model(self):
        return model_saying(self)

    def open(self):
        self.permits.release(10_000)


async def collect(deltas):
    return [delta async for delta in deltas]


def test_astream_says_what_stream_says():
    model = model_saying(THOUGHT)
    told = fold(asyncio.run(collect(model.astream("2+2?", seed=1))))
    whole = model.chat("2+2?", seed=1)
    assert (told.thinking, told.content, told.finish_reason) == (whole.thinking, whole.content, whole.finish_reason)
    assert told.usage.completion_tokens == whole.usage.completion_tokens
    assert asyncio.run(model.achat("2+2?", seed=1)).content == whole.content == "It is 4.\n"


def test_errors_come_with_the_first_delta_and_leave_the_model_usable():
    model = model_saying("Yes.")
    with pytest.raises(RequestError, match="'temprature' is not an option"):
        asyncio.run(collect(model.astream("?", temprature=1)))
    with pytest.raises(RequestError, match="thinking_budget"):
        asyncio.run(model.achat("?", thinking_budget=-1))
    assert model.generate("?", thinking=False) == "Yes."


def test_the_loop_goes_on_while_the_engine_computes():
    gated = Gated()
    model = gated.model()

    async def main():
        reading = asyncio.create_task(collect(model.astream("?", thinking=False, loop_guard=False, max_tokens=5)))
        await asyncio.to_thread(gated.began.wait, 20)  # the engine is inside a step, and stays there
        beats = [await asyncio.sleep(0, beat) for beat in range(100)]
        assert not reading.done()
        gated.open()
        return beats, await reading

    beats, deltas = asyncio.run(main())
    assert len(beats) == 100
    assert deltas[-1].finish_reason == "length"


def cancelled_within_a_step(model, gated, leave):
    """Begin an answer, leave it while a step is computed, let steps go on; how many were computed after that."""

    async def main():
        await leave(model.astream("?", thinking=False, loop_guard=False))

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    thread.join(20)
    assert not thread.is_alive()
    computed = len(model.backend.forwarded)
    gated.open()
    assert model.chat("?", thinking=False, max_tokens=2, loop_guard=False).finish_reason == "length"
    return computed


def test_cancelling_the_task_ends_the_answer_within_a_step():
    gated = Gated()
    model = gated.model()

    async def leave(deltas):
        gated.permits.release(3)
        reading = asyncio.create_task(collect(deltas))
        while len(model.backend.forwarded) < 4:  # three words are out, a fourth step waits  # noqa: ASYNC110
            await asyncio.sleep(0)
        reading.cancel()
        await asyncio.sleep(0)  # the cancellation has arrived and asked the engine to stop
        gated.permits.release(5)
        with pytest.raises(asyncio.CancelledError):
            await reading

    assert cancelled_within_a_step(model, gated, leave) <= 5


def test_leaving_the_loop_early_ends_the_answer_within_a_step():
    gated = Gated()
    model = gated.model()

    async def leave(deltas):
        gated.permits.release(3)
        async with contextlib.aclosing(deltas):
            async for delta in deltas:
                if delta.content:
                    break
            gated.permits.release(2)

    assert cancelled_within_a_step(model, gated, leave) <= 6


def test_who_waits_for_a_turn_can_be_cancelled_and_ends_nobody_elses_answer():
    model = model_saying("one two three")
    stream = model.stream("?", thinking=False)
    first = next(stream).content  # has the turn until it is read to its end

    async def main():
        waiting = [asyncio.create_task(model.achat("?", thinking=False)) for _ in range(3)]
        await asyncio.sleep(0)
        for task in waiting:
            task.cancel()
        results = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 60)
        assert all(isinstance(result, asyncio.CancelledError) for result in results)

    asyncio.run(main())
    assert first + "".join(delta.content for delta in stream) == "one two three"


def test_many_on_one_loop_get_one_answer_after_the_other():
    model = model_saying("one two three")

    async def main():
        return await asyncio.gather(*(model.achat("?", thinking=False) for _ in range(20)))

    assert {answer.content for answer in asyncio.run(main())} == {"one two three"}


def test_closing_the_model_ends_an_answer_of_the_loop():
    gated = Gated()
    model = gated.model()

    async def main():
        reading = asyncio.create_task(model.achat("?", thinking=False, loop_guard=False))
        await asyncio.to_thread(gated.began.wait, 20)
        closing = asyncio.create_task(asyncio.to_thread(model.close))
        gated.open()
        await closing
        with pytest.raises(EngineError):
            await reading

    asyncio.run(main())


def test_an_interrupt_from_outside_is_told():
    gated = Gated()
    model = gated.model()

    async def main():
        reading = asyncio.create_task(model.achat("?", thinking=False, loop_guard=False))
        await asyncio.to_thread(gated.began.wait, 20)
        model.interrupt()
        gated.open()
        with pytest.raises(InterruptedForwardError):
            await reading

    asyncio.run(main())


def echo(ids):
    """An engine that spells the last question back: answers that were mixed up would show."""
    text = b"".join(map(TOKENIZER.token_bytes, ids)).decode(errors="replace")
    head, _, written = text.rpartition("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    question = head.rpartition("<|im_start|>user\n")[2].partition("<|im_end|>")[0]
    left = TOKENIZER.encode(question)[len(TOKENIZER.encode(written)) :]
    return left[0] if left else END


def test_threads_streams_and_loops_share_a_model_and_nothing_is_mixed_up():
    model = model_saying(echo)
    found, failed = [], []

    def ask(kind, number):
        question = f"question {number} of {kind}"
        if kind == "chat":
            answer = model.chat(question, thinking=False).content
        elif kind == "stream":
            answer = "".join(delta.content for delta in model.stream(question, thinking=False))
        elif kind == "loop":
            answer = asyncio.run(model.achat(question, thinking=False)).content
        else:
            assert model.prepare([{"role": "user", "content": question}]) > 0
            assert model.count_tokens(question) > 0
            answer = question
        found.append((question, answer))

    def work(kind):
        try:
            for number in range(6):
                ask(kind, number)
        except Exception as error:  # noqa: BLE001 - shown below
            failed.append(error)

    threads = [threading.Thread(target=work, args=(kind,)) for kind in ("chat", "stream", "loop", "prepare") * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not failed
    assert len(found) == len(threads) * 6
    assert [(question, answer) for question, answer in found if question != answer] == []
