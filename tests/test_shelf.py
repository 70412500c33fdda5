"""What is kept outside of the pool comes back as it was, to its owner alone, and slows nobody down meanwhile."""

import random

import numpy as np
import pytest
from test_scheduler import backend_of, endless, finish, job_of, nano_backend

from edgeqwen.backends.base import Chunk
from edgeqwen.catalog import find
from edgeqwen.errors import NoRoomError
from edgeqwen.memory_need import SWAP_TOKENS
from edgeqwen.model import fold
from edgeqwen.server.prefix_cache import PrefixCache
from edgeqwen.server.scheduler import Scheduler
from edgeqwen.server.shelf import TALKS_MAX, Shelf
from edgeqwen.types import Message

IDS = [int(i) for i in np.random.default_rng(5).integers(0, 4000, 700)]


def feed(backend, sequence, ids):
    for start in range(0, len(ids), backend.step_tokens):
        (logits,) = backend.forward([Chunk(sequence, ids[start : start + backend.step_tokens])])
    return logits[-1].copy()


@pytest.fixture(params=["scripted", "llamacpp"])
def backend(request, nano_artifact):
    if request.param == "scripted":
        backend = backend_of(swap_tokens=2048, pool_tokens=2048)
    else:
        backend = nano_backend(find(nano_artifact("f32")), sequences=8, pool_tokens=2048, swap_tokens=2048)
    yield backend
    backend.close()


@pytest.mark.parametrize("length", [1, 100, 128, 129, 200])
def test_what_comes_back_is_what_went_out(backend, length):
    feed(backend, 0, IDS[:200])
    expected = feed(backend, 0, IDS[200:210])
    backend.truncate(0, 200)
    feed(backend, 3, IDS[300:420])
    room = backend.room()
    pieces = [backend.swap.take_out(0, start, min(200, start + SWAP_TOKENS)) for start in (0, SWAP_TOKENS)]
    assert (backend.room(), backend.length(0)) == (room, 200)
    backend.truncate(0, 0)
    feed(backend, 4, IDS[420:520])  # where it was
    feed(backend, 1, IDS[:40])  # its first tokens are there already
    backend.swap.put_back(1, pieces[0], IDS[40 : min(length, 128)] if length > 40 else [])
    if length > 128:
        backend.swap.put_back(1, pieces[1], IDS[128:length])
    assert list(backend.ids(1)) == IDS[: max(40, length)]
    np.testing.assert_allclose(feed(backend, 1, IDS[max(40, length) : 210]), expected, atol=1e-4)


def test_a_piece_that_finds_no_room_changes_nothing(backend):
    feed(backend, 0, IDS[:128])
    cells = backend.swap.take_out(0, 0, 128)
    sequence = 1
    while backend.room() >= 128:
        feed(backend, sequence, [7, *IDS * 2][: min(1024, backend.room() - 100)])
        sequence += 1
    with pytest.raises(NoRoomError):
        backend.swap.put_back(sequence, cells, IDS[:128])
    assert backend.length(sequence) == 0
    backend.truncate(1, 0)
    backend.swap.put_back(sequence, cells, IDS[:128])
    feed(backend, sequence, IDS[128:130])


def test_a_recycled_buffer_is_used_again(backend):
    feed(backend, 0, IDS[:300])
    first = backend.swap.take_out(0, 0, 128)
    backend.swap.recycle(first)
    second = backend.swap.take_out(0, 128, 228)
    kept = backend.swap.take_out(0, 0, 128)
    backend.truncate(0, 128)
    backend.swap.put_back(0, second, IDS[128:228])
    backend.swap.put_back(1, kept, IDS[:128])
    assert list(backend.ids(0)) == IDS[:228]


def put_all(shelf, sequence, owner="", prompt_tokens=0, *, replace=True):
    left = shelf.put(sequence, owner, prompt_tokens, replace=replace)
    while left:
        left = shelf.put(sequence, owner, prompt_tokens, replace=replace)
    return left


def test_a_common_start_is_there_once_and_the_rest_of_an_old_turn_goes():
    backend = backend_of(swap_tokens=128 * 6)
    shelf = Shelf(backend, backend.swap)
    feed(backend, 0, IDS[:300])
    feed(backend, 1, [*IDS[:260], *IDS[400:500]])
    assert put_all(shelf, 0, prompt_tokens=290) == 0
    assert shelf.tokens == 3 * 128
    assert put_all(shelf, 1, prompt_tokens=350) == 0
    assert shelf.tokens == 4 * 128  # two pieces are the same
    feed(backend, 0, IDS[300:330])
    assert put_all(shelf, 0, prompt_tokens=320) == 0
    assert shelf.tokens == 4 * 128  # the turn before is part of this one
    kept, shared = shelf.longest("", IDS[:700])
    assert shared == 330
    shelf.give_back(kept, 5, 310)
    assert list(backend.ids(5)) == IDS[:310]
    assert shelf.longest("eve", IDS) == (None, 0)


def test_the_least_recently_used_goes_first_and_only_if_it_must():
    backend = backend_of(swap_tokens=128 * 4, context_length=2048)
    shelf = Shelf(backend, backend.swap)
    for sequence in range(3):
        feed(backend, sequence, IDS[200 * sequence : 200 * sequence + 200])
    assert [put_all(shelf, sequence) for sequence in (0, 1)] == [0, 0]
    assert put_all(shelf, 2, replace=False) is None
    kept, shared = shelf.longest("", IDS[:200])
    shelf.give_back(kept, 5, shared)  # used
    assert put_all(shelf, 2) == 0
    assert [shelf.longest("", IDS[200 * n : 200 * n + 200])[1] for n in range(3)] == [200, 0, 200]
    feed(backend, 6, IDS * 2)
    assert shelf.put(6, "", 0, replace=True) is None  # larger than all


def test_whoever_floods_the_shelf_pushes_out_his_own():
    backend = backend_of(swap_tokens=128 * 8)
    shelf = Shelf(backend, backend.swap)
    feed(backend, 0, IDS[:100])
    put_all(shelf, 0, "ann")
    for start in range(100, 3800, 200):
        backend.truncate(1, 0)
        feed(backend, 1, list(range(start, start + 200)))
        put_all(shelf, 1, "bob")
    assert shelf.longest("ann", IDS)[1] == 100
    assert shelf.longest("bob", IDS)[1] == 0


def test_there_are_so_many_talks_at_most():
    backend = backend_of(swap_tokens=128 * 500, context_length=256)
    shelf = Shelf(backend, backend.swap)
    for number in range(TALKS_MAX + 20):
        backend.truncate(0, 0)
        feed(backend, 0, [*IDS[:130], number])
        assert put_all(shelf, 0, prompt_tokens=140) == 0
    assert shelf.tokens == 128 * (1 + TALKS_MAX)  # their common start, and an end each
    assert shelf.longest("", [*IDS[:130], 0])[1] == 130
    assert shelf.longest("", [*IDS[:130], TALKS_MAX + 19])[1] == 131


@pytest.mark.parametrize("broken", ["take_out", "put_back"])
def test_an_engine_that_fails_to_move_cells_costs_the_prefix_and_nothing_else(broken, monkeypatch):
    backend = backend_of(swap_tokens=4096, sequences=3)
    scheduler = Scheduler(backend, 1)
    history = (Message("system", "Be brief. " * 90), Message("user", "One?"))
    (first,) = finish(scheduler, [(0, job_of(1, history, temperature=0.0))]).values()

    def fails(*_):
        raise NoRoomError("the engine found no room")

    monkeypatch.setattr(backend.swap, broken, fails)
    finish(scheduler, [(0, job_of(2, "Something else?", temperature=0.0, max_tokens=20))])
    (again,) = finish(scheduler, [(0, job_of(3, history, temperature=0.0))]).values()
    assert fold(again).content == fold(first).content


def test_what_a_job_computed_itself_is_no_cached_token_of_it():
    """In a pool that is too small jobs give way, are moved to the shelf, and come back."""
    for seed in range(12):
        rng = random.Random(seed)
        backend = backend_of(sequences=8, pool_tokens=700, swap_tokens=4096, step_tokens=32)
        asked = [" ".join(rng.choices(["river", "blue", "12", "why"], k=rng.choice([60, 150, 250]))) for _ in range(10)]
        jobs = [job_of(number, text, seed=number, max_tokens=60) for number, text in enumerate(asked)]
        events = finish(Scheduler(backend, 6), [(rng.randrange(60), job) for job in jobs])
        for number in range(10):
            completion = fold(events[number])
            assert completion.usage.cached_tokens < completion.usage.prompt_tokens
            assert completion.timings.prompt_tokens_per_s >= 0


def test_a_talk_that_waits_leaves_the_pool_to_others_and_is_not_computed_again():
    backend = backend_of(swap_tokens=4096)
    scheduler = Scheduler(backend, 2)
    history = (Message("system", "Be brief. " * 90), Message("user", "One?"))
    (first,) = finish(scheduler, [(0, job_of(1, history, temperature=0.0))]).values()
    held = backend.room()
    finish(scheduler, [(0, job_of(2, "Something else?", temperature=0.0, max_tokens=20))])
    assert backend.room() > held + 200  # out of the way
    backend.forwarded.clear()
    turn = (*history, fold(first).message, Message("user", "Two?"))
    (second,) = finish(scheduler, [(0, job_of(3, turn, temperature=0.0))]).values()
    usage = fold(second).usage
    assert usage.cached_tokens > 200
    computed = sum(tokens for _, tokens in backend.forwarded)
    assert computed == usage.prompt_tokens - usage.cached_tokens + usage.completion_tokens - 1


def test_beside_running_answers_one_piece_is_copied_in_a_step(monkeypatch):
    backend = backend_of(endless, swap_tokens=4096)
    moved = []
    take_out = backend.swap.take_out
    monkeypatch.setattr(backend.swap, "take_out", lambda *args: (moved.append(args), take_out(*args))[1])
    scheduler = Scheduler(backend, 2)
    scheduler.add(job_of(1, "Hello", max_tokens=400))
    scheduler.add(job_of(2, "a long one " * 200, max_tokens=2))
    steps = 0
    while scheduler.running or not steps:
        before = len(moved)
        answers = sum(scheduler._behind(job) == 1 for job in scheduler.running)
        scheduler.step()
        steps += 1
        assert len(moved) <= before + 1 or answers == 0
    lengths = [end - start for _, start, end in moved]
    assert lengths.count(128) >= len(lengths) - 1 > 5  # of what runs, whole pieces; the rest of the other when it ended


def test_what_was_copied_while_it_ran_or_rested_is_only_cut_when_others_come(monkeypatch):
    backend = backend_of(swap_tokens=4096)
    room, scheduler = backend.room(), Scheduler(backend, 2)
    finish(scheduler, [(0, job_of(1, "a long one " * 100, temperature=0.0, max_tokens=40))])
    while scheduler.rest():
        pass
    assert backend.room() < room - 200  # its own next turn needs no move

    def moves(*_):
        raise AssertionError("nothing is left to move")

    monkeypatch.setattr(backend.swap, "take_out", moves)
    scheduler.add(job_of(2, "Something else?", temperature=0.0, max_tokens=20))
    scheduler.step()
    assert backend.room() > room - 100


def test_a_thousand_talks_of_three_owners_get_what_is_theirs():
    """The scripted engine refuses cells that hold other ids than those asked for."""
    backend = backend_of(sequences=6, pool_tokens=1500, swap_tokens=128 * 9, context_length=700)
    cache, rng = PrefixCache(backend), random.Random(2)
    talks = {
        (owner, n): [rng.randrange(4000) for _ in range(rng.randrange(5, 200))] for owner in "abc" for n in range(4)
    }
    gained = 0
    for _ in range(1000):
        owner, talk = rng.choice(list(talks))
        ids = talks[owner, talk] + [rng.randrange(4000) for _ in range(rng.randrange(1, 60))]
        taken = cache.take(owner, ids, 0)
        assert taken is not None
        sequence, held = taken
        cache.extend(sequence, ids[:-1])
        more = backend.length(sequence) - held
        gained += more
        assert list(backend.ids(sequence)) == ids[: held + more]
        cache.tidy(rng.choice([1, 2, 50]))
        feed(backend, sequence, ids[held + more :])
        cache.release(sequence, len(ids))
        while rng.random() < 0.6 and cache.copy_one():
            pass
        talks[owner, talk] = ids if len(ids) < 400 else [rng.randrange(4000) for _ in range(20)]
    assert gained > 20_000
