"""The loop guard on cycles and on text that only looks like one."""

import random

import pytest

from edgeqwen.loop_guard import EVERY, PERIOD_MAX, REPEATED_MIN, TIMES_MIN, LoopGuard


def caught_after(ids: list[int]) -> int | None:
    guard = LoopGuard()
    return next((i + 1 for i, token_id in enumerate(ids) if guard.push(token_id)), None)


@pytest.mark.parametrize("period", [1, 2, 7, 63, 64, 65, 200, PERIOD_MAX])
def test_a_cycle_is_caught_soon_after_it_is_certain(period):
    rng = random.Random(period)
    prefix = [rng.randrange(1000, 9000) for _ in range(500)]
    cycle = [rng.randrange(1000) for _ in range(period)]
    certain = len(prefix) + max(REPEATED_MIN, TIMES_MIN * period) + period
    caught = caught_after(prefix + cycle * 2000)
    assert caught is not None
    assert certain <= caught <= certain + EVERY


def test_lists_tables_and_few_repetitions_pass():
    rng = random.Random(0)
    numbered = [token for line in range(300) for token in (7, 8, 1000 + line, 9)]
    twice = [rng.randrange(50_000) for _ in range(900)] * 2
    assert caught_after(numbered) is None
    assert caught_after(twice) is None
    assert caught_after([5] * (REPEATED_MIN - 1)) is None
    assert caught_after([rng.randrange(3) for _ in range(20_000)]) is None


def test_a_cycle_that_breaks_off_is_not_one():
    broken = ([1, 2, 3, 4] * 20 + [99]) * 3
    assert caught_after(broken[:240]) is None
