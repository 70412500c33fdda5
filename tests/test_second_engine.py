"""What is computed aside is what a step would have computed; one body for the scripted engine and llama.cpp."""

import numpy as np
import pytest

from edgeqwen import load
from edgeqwen.backends.base import Chunk
from edgeqwen.backends.llamacpp import LlamaCppBackend, LlamaCppSettings
from edgeqwen.backends.scripted import ScriptedBackend
from edgeqwen.backends.second_engine import SecondEngine
from edgeqwen.errors import EngineError, InterruptedForwardError, NoRoomError

CONTEXT, PIECE, POOL = 512, 64, 700
IDS = [int(i) for i in np.random.default_rng(3).integers(0, 4000, 400)]
OTHERS = [int(i) for i in np.random.default_rng(4).integers(0, 4000, 400)]


def mixed_row(ids):
    seed = hash(tuple(ids)) % 2**32
    return np.random.default_rng(seed).standard_normal(4096).astype(np.float32)


def scripted(_nano_artifact):
    settings = {"vocab_size": 4096, "context_length": CONTEXT}
    main = ScriptedBackend(mixed_row, sequences=3, pool_tokens=POOL, **settings)
    side = ScriptedBackend(mixed_row, sequences=2, pool_tokens=CONTEXT, step_tokens=PIECE, **settings)
    main.aside = SecondEngine(main, side, threads=2, side_threads=1)
    return main


def llamacpp(nano_artifact, kv_type="f32"):
    (path,) = nano_artifact("f32").glob("*.gguf")
    settings = LlamaCppSettings(
        CONTEXT, 2, sequences=3, pool_tokens=POOL, kv_type=kv_type, aside_threads=1, aside_tokens=PIECE
    )
    return LlamaCppBackend(path, settings)


@pytest.fixture(params=[scripted, llamacpp], ids=["scripted", "llamacpp"])
def backend(request, nano_artifact):
    backend = request.param(nano_artifact)
    yield backend
    if backend.aside is not None:
        backend.aside.close()
        backend.aside = None
    backend.close()


@pytest.fixture
def tolerance(backend):
    return 0.0 if isinstance(backend, ScriptedBackend) else 1e-4


def aside(backend, chunk):
    """Compute a piece to its end and take it over; its logits, kept."""
    logits = compute(backend, chunk)
    backend.aside.hand_over(backend.aside.ahead)
    return logits


def compute(backend, chunk):
    """The same, and leave it aside."""
    backend.aside.start(chunk)
    backend.aside.wait(60)
    assert not backend.aside.running
    return backend.aside.finish().copy()


def step(backend, chunk):
    return backend.forward([chunk])[0].copy()


def feed(backend, sequence, ids, piece=PIECE):
    for start in range(0, len(ids), piece):
        logits = aside(backend, Chunk(sequence, ids[start : start + piece]))
    return logits


@pytest.fixture(scope="module")
def known():
    """What `expected` has computed, by engine: its weights are the same in every test."""
    return {}


@pytest.fixture
def expected(backend, known):
    """Logits behind each of the first 300 ids of both texts."""
    if type(backend) in known:
        return known[type(backend)]
    rows = {}
    for name, ids in (("ids", IDS), ("others", OTHERS)):
        rows[name] = np.concatenate(
            [step(backend, Chunk(0, ids[start : start + 20], "all")) for start in range(0, 300, 20)]
        )
        backend.truncate(0, 0)
    known[type(backend)] = rows
    return rows


def test_pieces_and_steps_are_the_same(backend, expected, tolerance):
    np.testing.assert_allclose(feed(backend, 0, IDS[:100])[-1], expected["ids"][99], atol=tolerance)
    assert list(backend.ids(0)) == IDS[:100]
    assert backend.room() == POOL - 100
    row = step(backend, Chunk(0, IDS[100:130]))[-1]  # a step goes on behind a piece,
    np.testing.assert_allclose(row, expected["ids"][129], atol=tolerance)
    row = feed(backend, 0, IDS[130:160])[-1]  # and a piece behind a step
    np.testing.assert_allclose(row, expected["ids"][159], atol=tolerance)
    backend.truncate(0, 50)
    np.testing.assert_allclose(feed(backend, 0, IDS[50:80])[-1], expected["ids"][79], atol=tolerance)


def test_prompts_that_take_turns_do_not_meet(backend, expected, tolerance):
    for start in range(0, 200, 40):
        for sequence, (name, ids) in enumerate((("ids", IDS), ("others", OTHERS))):
            row = aside(backend, Chunk(sequence, ids[start : start + 40]))[-1]
            np.testing.assert_allclose(row, expected[name][start + 39], atol=tolerance)


def test_steps_go_on_meanwhile(backend, expected, tolerance):
    step(backend, Chunk(0, IDS[:100]))
    step(backend, Chunk(1, OTHERS[:10]))
    backend.aside.start(Chunk(0, IDS[100:160]))
    for i in range(10, 40):
        row = step(backend, Chunk(1, OTHERS[i : i + 1]))[-1]
        np.testing.assert_allclose(row, expected["others"][i], atol=tolerance)
    backend.aside.wait(60)
    np.testing.assert_allclose(backend.aside.finish()[-1], expected["ids"][159], atol=tolerance)
    backend.aside.hand_over(60)
    np.testing.assert_allclose(step(backend, Chunk(0, IDS[160:161]))[-1], expected["ids"][160], atol=tolerance)
    np.testing.assert_allclose(step(backend, Chunk(1, OTHERS[40:41]))[-1], expected["others"][40], atol=tolerance)


def test_cells_shared_with_another_sequence_stay_shared(backend, expected, tolerance):
    feed(backend, 0, IDS[:100])
    backend.copy(0, 1, 80)
    row = feed(backend, 1, IDS[80:120])[-1]
    np.testing.assert_allclose(row, expected["ids"][119], atol=tolerance)
    assert backend.room() == POOL - 100 - 40
    np.testing.assert_allclose(step(backend, Chunk(0, IDS[100:101]))[-1], expected["ids"][100], atol=tolerance)


def test_pieces_stay_aside_until_they_are_handed_over(backend, expected, tolerance):
    step(backend, Chunk(0, IDS[:10]))
    for start in range(10, 100, 30):
        row = compute(backend, Chunk(0, IDS[start : start + 30]))[-1]
        np.testing.assert_allclose(row, expected["ids"][start + 29], atol=tolerance)
        step(backend, Chunk(1, OTHERS[start : start + 1]))
    assert (backend.aside.ahead, backend.length(0), backend.room()) == (90, 10, POOL - 13)
    with pytest.raises(EngineError, match="already"):
        backend.aside.start(Chunk(1, OTHERS[:5]))
    for tokens in (50, 0, 40):
        backend.aside.hand_over(tokens)
    assert (backend.aside.ahead, list(backend.ids(0))) == (0, IDS[:100])
    np.testing.assert_allclose(step(backend, Chunk(0, IDS[100:101]))[-1], expected["ids"][100], atol=tolerance)


def test_of_what_is_dropped_the_finished_pieces_are_kept(backend, expected, tolerance):
    compute(backend, Chunk(0, IDS[:64]))
    compute(backend, Chunk(0, IDS[64:100]))
    backend.aside.start(Chunk(0, IDS[100:160]))
    backend.aside.drop()
    assert (backend.aside.ahead, list(backend.ids(0))) == (0, IDS[:100])
    np.testing.assert_allclose(feed(backend, 0, IDS[100:130])[-1], expected["ids"][129], atol=tolerance)
    feed(backend, 1, OTHERS[:300])
    feed(backend, 2, OTHERS[:250])
    compute(backend, Chunk(0, IDS[130:160]))
    backend.aside.drop()  # as far as there is room
    assert (list(backend.ids(0)), backend.room()) == (IDS[:150], 0)


def test_what_was_left_there_by_another_owner_is_brought_anew(backend, monkeypatch):
    aside(backend, Chunk(0, IDS[:60]))
    brought, pass_on = [], backend.pass_on
    monkeypatch.setattr(backend, "pass_on", lambda *words: brought.append(words[3:]) or pass_on(*words))
    for owner, wanted in (("", []), ("other", [(0, 60)]), ("other", [(0, 60)])):
        backend.aside.start(Chunk(0, OTHERS[:10]), owner)
        backend.aside.drop()
        assert brought == wanted, owner


def test_no_rows_where_none_are_asked(backend):
    assert aside(backend, Chunk(0, IDS[:10], "none")).shape == (0, 4096)


def test_what_is_dropped_leaves_the_sequence_as_it_was(backend, expected, tolerance):
    feed(backend, 0, IDS[:60])
    for _ in range(3):
        backend.aside.start(Chunk(0, OTHERS[:64]))
        backend.aside.drop()
        assert not backend.aside.running
    assert list(backend.ids(0)) == IDS[:60]
    np.testing.assert_allclose(feed(backend, 0, IDS[60:90])[-1], expected["ids"][89], atol=tolerance)
    backend.aside.drop()  # nothing: fine


def test_a_full_pool_says_so_and_changes_nothing(backend, expected, tolerance):
    feed(backend, 0, IDS[:300])
    feed(backend, 1, OTHERS[:300])
    step(backend, Chunk(2, IDS[:70]))
    backend.aside.start(Chunk(1, OTHERS[300:350]))
    backend.aside.wait(60)
    backend.aside.finish()
    with pytest.raises(NoRoomError):
        backend.aside.hand_over(50)
    assert (backend.length(1), backend.room(), backend.aside.ahead) == (300, POOL - 670, 50)
    backend.truncate(2, 0)
    backend.aside.hand_over(50)
    np.testing.assert_allclose(aside(backend, Chunk(0, IDS[300:301])).shape, (1, 4096))
    backend.truncate(1, 200)
    np.testing.assert_allclose(feed(backend, 1, OTHERS[200:250])[-1], expected["others"][249], atol=tolerance)


def test_one_piece_at_a_time_and_no_end_without_a_start(backend):
    with pytest.raises(EngineError, match="no piece"):
        backend.aside.finish()
    backend.aside.start(Chunk(0, IDS[:10]))
    with pytest.raises(EngineError, match="already"):
        backend.aside.start(Chunk(1, IDS[:10]))
    backend.aside.wait(60)
    backend.aside.finish()


def test_an_error_aside_is_raised_at_its_end(backend, monkeypatch):
    def failing(_chunks):
        raise InterruptedForwardError("stopped")

    monkeypatch.setattr(backend.aside._side, "forward", failing)
    backend.aside.start(Chunk(0, IDS[:10]))
    backend.aside.wait(60)
    with pytest.raises(InterruptedForwardError):
        backend.aside.finish()
    assert backend.length(0) == 0
    assert not backend.aside.running


def test_closing_stops_what_is_computed_aside(nano_artifact):
    backend = llamacpp(nano_artifact)
    backend.aside.start(Chunk(0, IDS[:64]))
    backend.close()
    backend.close()
    with pytest.raises(EngineError, match="closed"):
        backend.forward([Chunk(0, [1])])


@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
def test_caches_of_every_type_are_handed_over(nano_artifact, kv_type):
    """Flash attention's rounding depends on the batch; what is handed over is the cells as they are."""
    backend = llamacpp(nano_artifact, kv_type)
    step(backend, Chunk(0, IDS[:64]))
    expected = step(backend, Chunk(0, IDS[64:65]))[-1]
    feed(backend, 1, IDS[:64])
    np.testing.assert_allclose(step(backend, Chunk(1, IDS[64:65]))[-1], expected, atol=0.05)
    backend.close()


@pytest.mark.parametrize("parallel", [19, 20, 32])
def test_as_many_answers_as_a_server_may_have_can_be_loaded(nano_artifact, parallel):
    """With everything beside them: llama.cpp aborts where it may give fewer rows than it has sequences."""
    with load(nano_artifact("f32"), engine="llamacpp", parallel=parallel, context_length=64, threads=2) as model:
        assert model.backend.aside is not None
        assert model.backend.swap is not None
        rows = model.backend.forward([Chunk(sequence, IDS[:2], "last") for sequence in range(parallel)])
        assert len(rows) == parallel
