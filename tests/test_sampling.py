"""The sampler against a plain full-vocabulary implementation, and against the laws it must keep."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeqwen.errors import EngineError, RequestError
from edgeqwen.sampling import LIMITS, Sampler, distribution, likeliest, log_probabilities, resolve
from edgeqwen.types import SAMPLING_PLAIN, GenerationConfig, Sampling

VOCAB = 5000


def row(seed: int, size: int = VOCAB) -> np.ndarray:
    return (4 * np.random.default_rng(seed).standard_normal(size)).astype(np.float32)


def plain_distribution(logits: np.ndarray, s: Sampling) -> dict[int, float]:
    """Softmax, sort, cut: one id at a time, in the order that transformers applies its warpers."""
    p = np.exp(logits.astype(np.float64) / s.temperature - logits.max() / s.temperature)
    order = sorted(range(len(p)), key=lambda i: (-logits[i], i))
    kept = order[: s.top_k] if s.top_k else order
    total, mass, nucleus = sum(p[i] for i in kept), 0.0, []
    for i in kept:
        if s.top_p < 1 and mass >= s.top_p * total:
            break
        nucleus.append(i)
        mass += p[i]
    best = p[nucleus[0]]
    final = [i for i in nucleus if p[i] / best >= s.min_p]
    total = sum(p[i] for i in final)
    return {i: p[i] / total for i in final}


@pytest.mark.parametrize("top_k", [0, 1, 20, 39, 40, 4999, 9999])
@pytest.mark.parametrize("top_p", [0.1, 0.8, 0.95, 1])
@pytest.mark.parametrize("min_p", [0, 0.05])
@pytest.mark.parametrize("temperature", [0.6, 1.5])
def test_distribution_equals_the_plain_one(top_k, top_p, min_p, temperature):
    sampling = Sampling(temperature, top_p, top_k, min_p)
    logits = row(top_k + int(100 * top_p))
    ids, weights = distribution(logits, sampling)
    expected = plain_distribution(logits, sampling)
    assert list(expected) == list(ids)
    np.testing.assert_allclose(weights / weights.sum(), list(expected.values()), rtol=1e-9)


@given(st.integers(0, 2**32), st.integers(1, 60), st.integers(1, 700), st.booleans())
@settings(max_examples=300, deadline=None)
def test_likeliest_equals_a_full_sort(seed, count, size, ties):
    logits = row(seed, size)
    if ties:
        logits = np.round(logits)
    np.testing.assert_array_equal(likeliest(logits, count), np.argsort(-logits, kind="stable")[:count])


def test_draws_follow_the_distribution():
    logits = row(1)
    sampling = Sampling(0.7, 0.9, 20, seed=11)
    expected = plain_distribution(logits, sampling)
    sampler = Sampler(sampling)
    drawn = np.bincount([sampler.sample(logits) for _ in range(20_000)], minlength=VOCAB) / 20_000
    assert set(np.flatnonzero(drawn)) <= set(expected)
    for token_id, probability in expected.items():
        assert abs(drawn[token_id] - probability) < 5 * np.sqrt(probability * (1 - probability) / 20_000) + 1e-12


def test_equal_seeds_draw_equal_ids_and_others_do_not():
    logits = row(2)

    def draw(seed: int) -> list[int]:
        sampler = Sampler(Sampling(1.0, 1.0, 0, seed=seed))
        return [sampler.sample(logits) for _ in range(50)]

    assert draw(5) == draw(5)
    assert draw(5) != draw(6)


def test_greedy_takes_the_best_and_the_lower_id_of_a_tie():
    logits = np.zeros(300, np.float32)
    logits[[40, 200]] = 3
    assert Sampler(Sampling(0, 1, 0)).sample(logits) == 40


def test_penalties_and_bias_act_as_defined_and_leave_the_row_alone():
    logits = row(3)
    before = logits.copy()
    first, second = (int(i) for i in likeliest(logits, 2))
    gap = float(logits[first] - logits[second])
    greedy = Sampling(0, 1, 0)

    def two(sampling: Sampling, prompt: tuple[int, ...] = ()) -> list[int]:
        sampler = Sampler(sampling, prompt)
        return [sampler.sample(logits), sampler.sample(logits)]

    assert gap < 2
    assert two(greedy) == [first, first]
    assert two(Sampling(0, 1, 0, presence_penalty=gap + 0.01)) == [first, second]
    assert two(Sampling(0, 1, 0, frequency_penalty=gap + 0.01)) == [first, second]
    assert two(Sampling(0, 1, 0, presence_penalty=gap + 0.01), (first,)) == [first, second]  # the prompt is free
    assert two(Sampling(0, 1, 0, repetition_penalty=2.0), (first,))[0] != first  # here it is not
    assert two(Sampling(0, 1, 0, logit_bias={7: 100.0})) == [7, 7]
    assert two(Sampling(0, 1, 0, logit_bias={first: -100.0}))[0] == second
    np.testing.assert_array_equal(logits, before)


def test_frequency_counts_every_repetition():
    logits = np.zeros(200, np.float32)
    logits[5], logits[9] = 1.0, 0.0
    sampler = Sampler(Sampling(0, 1, 0, frequency_penalty=0.4))
    assert [sampler.sample(logits) for _ in range(4)] == [5, 5, 5, 0]


def test_repetition_penalty_pushes_negative_logits_down():
    logits = np.full(200, -1.0, np.float32)
    logits[3] = -0.9
    assert Sampler(Sampling(0, 1, 0, repetition_penalty=1.5), (3,)).sample(logits) == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_no_numbers_are_an_error(bad):
    with pytest.raises(EngineError, match="damaged"):
        Sampler(SAMPLING_PLAIN).sample(np.full(300, bad, np.float32))


def test_log_probabilities_are_those_of_a_softmax():
    logits = row(4)
    reference = logits.astype(np.float64) - np.log(np.exp(logits.astype(np.float64)).sum())
    np.testing.assert_allclose(log_probabilities(logits, np.array([0, 17, 4999])), reference[[0, 17, 4999]], atol=1e-5)


def test_resolve_keeps_the_defaults_that_were_not_set():
    sampling = resolve(GenerationConfig(top_k=5, seed=3, logit_bias={1: 2.0}), SAMPLING_PLAIN)
    assert sampling == Sampling(0.7, 0.8, 5, seed=3, logit_bias={1: 2.0})
    assert resolve(GenerationConfig(temperature=0.0), SAMPLING_PLAIN).temperature == 0


@pytest.mark.parametrize("name", LIMITS)
@pytest.mark.parametrize("bad", [-5, 1e30, float("nan"), "1", True])
def test_values_out_of_range_are_refused_by_name(name, bad):
    with pytest.raises(RequestError, match=name):
        resolve(GenerationConfig(**{name: bad}), SAMPLING_PLAIN)


@pytest.mark.parametrize("bad", [-1, 2**64, 1.5, "x"])
def test_seeds_are_whole_numbers(bad):
    with pytest.raises(RequestError, match="seed"):
        resolve(GenerationConfig(seed=bad), SAMPLING_PLAIN)
