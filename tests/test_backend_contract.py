"""One body, every engine: what backends/base.py promises, checked at the logits."""

import itertools
import threading
from importlib.util import find_spec

import numpy as np
import pytest

from edgeqwen.artifact import open_artifact
from edgeqwen.backends import BACKENDS
from edgeqwen.backends.base import Chunk, Ledger
from edgeqwen.backends.llamacpp import LlamaCppBackend, LlamaCppSettings
from edgeqwen.backends.ort import OrtBackend, OrtSettings
from edgeqwen.backends.ort_plain import OrtPlainBackend
from edgeqwen.backends.scripted import ScriptedBackend
from edgeqwen.catalog import NANO
from edgeqwen.errors import EngineError, InterruptedForwardError, NoRoomError

CONTEXT, SEQUENCES, STEP = 256, 3, 64
IDS = [int(i) for i in np.random.default_rng(7).integers(0, 4000, 200)]


def mixed_row(ids):
    """Logits that depend on every id and its place."""
    seed = hash(tuple(ids)) % 2**32
    return np.random.default_rng(seed).standard_normal(4096).astype(np.float32)


def with_torch(name):
    """Only in the environment of `make reference`."""
    absent = find_spec("torch") is None
    return pytest.param(
        name, marks=[pytest.mark.reference, pytest.mark.skipif(absent, reason="torch is not installed")]
    )


ENGINES = [name for name in BACKENDS if name != "reference"]


@pytest.fixture(scope="module", params=["scripted", *ENGINES, with_torch("reference"), with_torch("ort_plain")])
def make(request, nano_artifact):
    """() -> a fresh backend, and the tolerance of its logits between different batch shapes."""
    made = []

    def scripted():
        return ScriptedBackend(
            mixed_row, vocab_size=4096, context_length=CONTEXT, sequences=SEQUENCES, step_tokens=STEP
        )

    def llamacpp():
        (path,) = nano_artifact("f32").glob("*.gguf")
        settings = LlamaCppSettings(
            CONTEXT, threads=1, sequences=SEQUENCES, kv_type="f32", step_tokens=STEP, step_rows=STEP
        )
        return LlamaCppBackend(path, settings)

    def ort():
        artifact = open_artifact(nano_artifact("fp32", "onnx"))
        settings = OrtSettings(CONTEXT, threads=2, sequences=SEQUENCES, step_tokens=STEP, step_rows=STEP)
        return OrtBackend(artifact.file("onnx"), artifact.manifest.shape, settings)

    def reference():
        from edgeqwen.backends.reference import ReferenceBackend, ReferenceSettings

        settings = ReferenceSettings(CONTEXT, threads=2, sequences=SEQUENCES, step_tokens=STEP, step_rows=STEP)
        return ReferenceBackend(NANO, settings)

    def ort_plain():
        artifact = open_artifact(request.getfixturevalue("llama_artifact"))
        settings = OrtSettings(CONTEXT, threads=2, sequences=SEQUENCES, step_tokens=STEP, step_rows=STEP)
        return OrtPlainBackend(artifact.file("onnx"), artifact.manifest.shape, settings)

    def fresh():
        made.append(makers[request.param]())
        return made[-1]

    makers = {f.__name__: f for f in (scripted, llamacpp, ort, reference, ort_plain)}
    fresh.tolerance = 0.0 if request.param == "scripted" else 1e-4
    yield fresh
    for backend in made:
        backend.close()


@pytest.fixture(scope="module")
def backend(make):
    return make()


@pytest.fixture(autouse=True)
def _empty(request):
    if "backend" in request.fixturenames:
        backend = request.getfixturevalue("backend")
        for sequence in range(backend.sequences):
            backend.truncate(sequence, 0)
        assert backend.room() == CONTEXT * SEQUENCES


@pytest.fixture(scope="module")
def reference(make):
    """Logits after each of the 200 ids, one forward at a time."""
    one_by_one = make()
    rows = [one_by_one.forward([Chunk(0, [i])])[0][0].copy() for i in IDS]
    return np.stack(rows)


def feed(backend, ids, sequence=0, rows="last"):
    for start in range(0, len(ids), backend.step_tokens):
        (logits,) = backend.forward([Chunk(sequence, ids[start : start + backend.step_tokens], rows)])
    return logits


@pytest.mark.parametrize("cut", [1, 2, 3, 7, 31, 63, 64])
def test_logits_do_not_depend_on_how_the_prompt_is_cut(backend, make, reference, cut):
    for start in range(0, len(IDS), cut):
        (logits,) = backend.forward([Chunk(0, IDS[start : start + cut], "all")])
        assert logits.shape == (len(IDS[start : start + cut]), 4096)
        assert logits.dtype == np.float32
        np.testing.assert_allclose(logits, reference[start : start + cut], atol=make.tolerance)


def test_rows_none_and_last(backend, make, reference):
    none, last = backend.forward([Chunk(0, IDS[:9], "none"), Chunk(1, IDS[:5], "last")])
    assert none.shape == (0, 4096)
    assert last.shape == (1, 4096)
    np.testing.assert_allclose(last[0], reference[4], atol=make.tolerance)
    assert (backend.length(0), backend.length(1), list(backend.ids(1))) == (9, 5, IDS[:5])


def test_unequal_sequences_in_one_step_equal_each_alone(backend, make, reference):
    feed(backend, IDS[:50], 0)
    feed(backend, IDS[:3], 2)
    chunks = [Chunk(2, IDS[3:4]), Chunk(0, IDS[50:60], "all"), Chunk(1, IDS[:20])]
    second, first, third = backend.forward(chunks)
    np.testing.assert_allclose(second[0], reference[3], atol=make.tolerance)
    np.testing.assert_allclose(first, reference[50:60], atol=make.tolerance)
    np.testing.assert_allclose(third[0], reference[19], atol=make.tolerance)


@pytest.mark.parametrize("length", [0, 1, 63, 64, 100])
def test_truncate_forgets_exactly_the_rest(backend, make, reference, length):
    feed(backend, IDS[:150])
    backend.truncate(0, length)
    assert backend.length(0) == length
    logits = feed(backend, IDS[length:170])
    np.testing.assert_allclose(logits[-1], reference[169], atol=make.tolerance)


def test_copies_share_their_cells_and_go_their_own_ways(backend, make, reference):
    feed(backend, IDS[:100])
    backend.copy(0, 1, 60)
    assert backend.room() == CONTEXT * SEQUENCES - 100
    backend.truncate(0, 10)
    assert backend.room() == CONTEXT * SEQUENCES - 60
    first, second = backend.forward([Chunk(0, IDS[10:30]), Chunk(1, IDS[60:80])])
    np.testing.assert_allclose(first[0], reference[29], atol=make.tolerance)
    np.testing.assert_allclose(second[0], reference[79], atol=make.tolerance)
    backend.copy(1, 0, 5)  # what sequence 0 held is dropped
    np.testing.assert_allclose(backend.forward([Chunk(0, IDS[5:8])])[0][0], reference[7], atol=make.tolerance)


def test_save_and_load(backend, make, reference, tmp_path):
    feed(backend, IDS[:90])
    backend.save(0, tmp_path / "session")
    with pytest.raises(EngineError, match="tokens"):
        backend.load(1, tmp_path / "session", IDS[:89])
    assert backend.length(1) == 0
    backend.load(1, tmp_path / "session", IDS[:90])
    assert list(backend.ids(1)) == IDS[:90]
    np.testing.assert_allclose(backend.forward([Chunk(1, IDS[90:91])])[0][0], reference[90], atol=make.tolerance)


def test_load_of_no_session_is_an_error(backend, tmp_path):
    (tmp_path / "damaged").write_bytes(b"0" * 100)
    for name in ("damaged", "absent"):
        with pytest.raises(EngineError):
            backend.load(0, tmp_path / name, IDS[:5])
    assert backend.length(0) == 0


@pytest.mark.parametrize("damage", ["cut", "flipped", "longer", "empty"])
def test_a_damaged_session_is_refused_before_native_code_reads_it(backend, tmp_path, damage):
    feed(backend, IDS[:20])
    backend.save(0, tmp_path / "session")
    raw = (tmp_path / "session").read_bytes()
    middle = len(raw) // 2
    damaged = {
        "cut": raw[:-100],
        "flipped": raw[:middle] + bytes([raw[middle] ^ 1]) + raw[middle + 1 :],
        "longer": raw + bytes(7),
        "empty": b"",
    }
    (tmp_path / "session").write_bytes(damaged[damage])
    with pytest.raises(EngineError, match="session"):
        backend.load(1, tmp_path / "session", IDS[:20])
    assert backend.length(1) == 0


def test_a_session_replaces_no_file(backend, tmp_path):
    feed(backend, IDS[:20])
    (tmp_path / "there").write_bytes(b"mine")
    for path in (tmp_path / "there", tmp_path / "no folder" / "session"):
        with pytest.raises(EngineError, match="cannot be written"):
            backend.save(0, path)
    assert (tmp_path / "there").read_bytes() == b"mine"


def test_a_session_that_has_no_room_is_refused(backend, tmp_path, monkeypatch):
    feed(backend, IDS[:20])
    backend.save(0, tmp_path / "session")
    for name, value in (("context_length", 19), ("_pool_tokens", 39)):
        with monkeypatch.context() as patch:
            patch.setattr(backend, name, value)
            with pytest.raises(NoRoomError, match="20 tokens: there is room for 19"):
                backend.load(1, tmp_path / "session", IDS[:20])
        assert backend.length(1) == 0
    with pytest.raises(EngineError, match="needs an empty one"):
        backend.load(0, tmp_path / "session", IDS[:20])


def test_a_copy_onto_itself_keeps_what_it_names(backend, make, reference):
    feed(backend, IDS[:50])
    backend.copy(0, 0, 30)
    assert list(backend.ids(0)) == IDS[:30]
    np.testing.assert_allclose(backend.forward([Chunk(0, IDS[30:31])])[0][0], reference[30], atol=make.tolerance)


@pytest.mark.parametrize(
    ("chunks", "error", "words"),
    [
        ([Chunk(3, [1])], EngineError, "there are 3"),
        ([Chunk(0, [1]), Chunk(0, [2])], EngineError, "each once"),
        ([Chunk(0, [])], EngineError, "at least one"),
        ([Chunk(0, [4096])], EngineError, "0..4095"),
        ([Chunk(0, [-1])], EngineError, "0..4095"),
        ([Chunk(0, IDS[:65])], EngineError, "at most 64 tokens"),
    ],
)
def test_what_no_engine_can_take_is_refused_and_changes_nothing(backend, chunks, error, words):
    with pytest.raises(error, match=words):
        backend.forward(chunks)
    assert backend.room() == CONTEXT * SEQUENCES


def test_a_full_sequence_says_so_and_goes_on(backend, make, reference):
    feed(backend, (IDS * 2)[:CONTEXT])
    with pytest.raises(NoRoomError, match="256"):
        backend.forward([Chunk(0, [1])])
    backend.truncate(0, 20)
    np.testing.assert_allclose(feed(backend, IDS[20:40])[-1], reference[39], atol=make.tolerance)


def test_an_interrupted_step_leaves_the_sequences_as_they_were(backend, make, reference):
    feed(backend, IDS[:30])
    backend.interrupt()
    with pytest.raises(InterruptedForwardError):
        backend.forward([Chunk(0, IDS[30:60]), Chunk(1, IDS[:9])])
    assert (backend.length(0), backend.length(1)) == (30, 0)
    np.testing.assert_allclose(feed(backend, IDS[30:60])[-1], reference[59], atol=make.tolerance)
    backend.interrupt()
    backend.resume()
    backend.forward([Chunk(1, IDS[:4])])


def test_an_exception_behind_the_native_call_leaves_the_sequences_as_they_were(backend, make, reference, monkeypatch):
    """Ctrl-C is raised when the native call comes back."""
    feed(backend, IDS[:30])
    append = Ledger.append

    def interrupted(self, sequence, ids):
        append(self, sequence, ids[:5])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "append", interrupted)
        with pytest.raises(KeyboardInterrupt):
            backend.forward([Chunk(0, IDS[30:60])])
    backend.truncate(0, 30)
    assert backend.length(0) == 30
    np.testing.assert_allclose(feed(backend, IDS[30:60])[-1], reference[59], atol=make.tolerance)


def test_a_closed_backend_says_so(make, tmp_path):
    closed = make()
    feed(closed, IDS[:5])
    closed.close()
    closed.close()
    calls = (
        lambda: closed.forward([Chunk(0, [1])]),
        lambda: closed.truncate(0, 1),
        lambda: closed.copy(0, 1, 1),
        lambda: closed.save(0, tmp_path / "session"),
        lambda: closed.load(1, tmp_path / "session", [1]),
    )
    for call in calls:
        with pytest.raises(EngineError, match="closed"):
            call()


def test_native_time_is_counted(make):
    timed = make()
    feed(timed, IDS[:50])
    assert timed.native_s >= 0
    before = timed.native_s
    feed(timed, IDS[50:100])
    assert timed.native_s >= before


def test_two_backends_live_side_by_side(make, reference):
    results = {}

    def work(name):
        own = make()
        results[name] = feed(own, IDS[:120])[-1].copy()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for row in results.values():
        np.testing.assert_allclose(row, reference[119], atol=make.tolerance)


def test_ledger_counts_shared_cells_once_whatever_happens():
    rng = np.random.default_rng(1)
    ledger = Ledger(4)
    cells: list[list[object]] = [[] for _ in range(4)]
    for _ in itertools.repeat(None, 3000):
        a, b = (int(i) for i in rng.integers(0, 4, 2))
        n = int(rng.integers(0, 12))
        match int(rng.integers(0, 3)):
            case 0:
                ledger.append(a, range(n))
                cells[a] += [object() for _ in range(n)]
            case 1:
                ledger.truncate(a, n)
                del cells[a][n:]
            case 2 if a != b:
                ledger.copy(a, b, n)
                cells[b] = cells[a][:n]
        assert ledger.used == len({id(c) for sequence in cells for c in sequence})
        assert [len(ids) for ids in ledger.ids] == [len(sequence) for sequence in cells]
