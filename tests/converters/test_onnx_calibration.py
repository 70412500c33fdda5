"""Calibrated rounding: products change less than with the nearest levels, in kernels, on nano, and nowhere else."""

from __future__ import annotations

import lzma
from importlib.resources import files

import numpy as np
import pytest
from tokenizers import Tokenizer

from converters import build, onnx_calibration, onnx_plan
from converters.build import convert_checkpoint
from converters.checkpoint import open_checkpoint
from converters.onnx_calibration import CALIBRATING, calibration_pages, spilled_bytes
from converters.onnx_gptq import COLUMNS_MAX, Inputs, round_products
from converters.onnx_grid import Grid, packed, round_rows, unround
from converters.onnx_plan import plan_onnx
from converters.onnx_spill import Spill
from converters.weights import CheckpointWeights
from edgeqwen.artifact import open_artifact
from edgeqwen.artifact_writer import ArtifactWriter
from edgeqwen.backends.base import Chunk
from edgeqwen.backends.ort import OrtBackend, OrtSettings
from edgeqwen.catalog import NANO
from edgeqwen.errors import ArtifactError, CheckpointError, RequestError

GRID = Grid(4, 32, zeros=True)
TEXTS = (
    "The quick brown fox jumps over the lazy dog, and nobody asks where it goes.",
    "def add(one, other):\n    return one + other\n",
    "What is the capital of France? 法国的首都是哪里?",
)


def correlated(tokens, width, seed=0):
    """Inputs of a few directions, as activations are, and a little of everything."""
    rng = np.random.default_rng(seed)
    few = rng.normal(size=(tokens, width // 8)) @ rng.normal(size=(width // 8, width))
    return (few + 0.1 * rng.normal(size=(tokens, width))).astype(np.float32)


def inputs_of(tokens, block_size=GRID.block_size):
    inputs = Inputs(tokens.shape[1], block_size)
    for part in np.array_split(tokens, 3):
        inputs.add(part)
    return inputs


def rounded(rows, inputs, grid=GRID):
    levels, scales, zeros = round_products(rows, *inputs.finish(), grid)
    return unround(packed(levels, 4), scales, packed(zeros, 4), grid)


def nearest(rows, grid=GRID):
    weights = np.empty((len(rows), grid.nbytes(rows.shape[1])), np.uint8)
    scales = np.empty((len(rows), grid.blocks(rows.shape[1])), np.float32)
    zeros = np.empty((len(rows), grid.zero_bytes(rows.shape[1])), np.uint8)
    round_rows(rows, grid, weights, scales, zeros)
    return unround(weights, scales, zeros, grid)


def one_by_one(rows, covariance, scales, zeros):
    """The method as it is defined: round a column, minimize over the rest, and take it out of the inverse."""
    rows, inverse = rows.astype(np.float64).copy(), np.linalg.inv(covariance.astype(np.float64))
    order = np.argsort(-np.diag(covariance), kind="stable")
    left = list(range(rows.shape[1]))
    levels = np.zeros(rows.shape, np.uint8)
    for column in order:
        block = column // GRID.block_size
        level = np.clip(np.rint(rows[:, column] / scales[:, block]) + zeros[:, block], 0, 15)
        levels[:, column] = level
        error = rows[:, column] - (level - zeros[:, block]) * scales[:, block]
        at = left.index(column)
        rows[:, left] -= np.outer(error / inverse[at, at], inverse[at])
        inverse -= np.outer(inverse[:, at], inverse[at]) / inverse[at, at]
        keep = [n for n in range(len(left)) if n != at]
        inverse, left = inverse[np.ix_(keep, keep)], [left[n] for n in keep]
    return levels


def test_levels_are_those_of_the_definition() -> None:
    rows = np.random.default_rng(1).normal(size=(24, 128)).astype(np.float32)
    tokens = correlated(600, 128)
    power, factors = inputs_of(tokens).finish()
    levels, scales, zeros = round_products(rows, power, factors, GRID)
    covariance = tokens.T.astype(np.float64) @ tokens
    covariance[np.diag_indices(128)] = power
    same = (levels == one_by_one(rows, covariance, scales, zeros)).all(axis=1)
    assert same.mean() > 0.9  # a tie that float32 decides otherwise changes the rest of its row


@pytest.mark.parametrize("tokens", [40, 4000])
def test_products_change_less_than_with_the_nearest_levels(tokens) -> None:
    rows = np.random.default_rng(2).normal(size=(64, 256)).astype(np.float32)
    seen, unseen = np.split(correlated(tokens + 500, 256), [tokens])
    found = rounded(rows, inputs_of(seen))

    def error(weights, on):
        return np.linalg.norm(on @ (weights - rows).T)

    assert error(found, seen) < 0.6 * error(nearest(rows), seen)
    assert error(found, unseen) < 0.8 * error(nearest(rows), unseen)


def test_inputs_that_do_not_go_together_leave_the_nearest_levels() -> None:
    rows = np.random.default_rng(3).normal(size=(16, 64)).astype(np.float32)
    np.testing.assert_allclose(rounded(rows, inputs_of(np.eye(64, dtype=np.float32))), nearest(rows), rtol=1e-5)


@pytest.mark.parametrize("rows", [np.zeros((2, 64)), np.full((2, 64), 3.0), np.eye(2, 64), np.full((2, 64), 1e-30)])
@pytest.mark.parametrize("tokens", [np.zeros((5, 64)), np.eye(1, 64), np.full((3, 64), 1e4)])
def test_nothing_and_much_of_the_same_are_finite(rows, tokens) -> None:
    found = rounded(rows.astype(np.float32), inputs_of(tokens.astype(np.float32)))
    assert np.isfinite(found).all()
    assert np.abs(found - rows).max() <= 0.6 * max(np.abs(rows).max(), 1e-20)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_inputs_that_overflow_are_refused(value) -> None:
    tokens = correlated(50, 64)
    tokens[7, 9] = value
    with np.errstate(all="ignore"), pytest.raises(CheckpointError, match="overflow"):
        inputs_of(tokens).finish()


@pytest.mark.parametrize(("width", "block"), [(64, 32), (1024, 128), (3072, 128), (8960, 128), (4864, 64), (8960, 256)])
def test_columns_go_together_in_runs_that_cut_no_block(width, block) -> None:
    runs = [run for run, _ in Inputs(width, block).finish()[1]] if width < 4000 else Inputs(width, block)._runs
    assert [run.start for run in runs] == [0, *(run.stop for run in runs[:-1])]
    assert runs[-1].stop == width
    assert all(run.stop - run.start <= COLUMNS_MAX + block and run.start % block == 0 for run in runs)


def converted(out, type="int4", *, calibrate=True, **settings):
    with open_checkpoint(NANO, name="nano") as checkpoint:
        settings = {"compare": False, "calibrate": calibrate, **settings}
        report = convert_checkpoint(checkpoint, out, type=type, formats=("onnx",), **settings)
    return open_artifact(out), report


@pytest.fixture(scope="module", params=["int4", "int4_fast"])
def pair(request, tmp_path_factory):
    """With the nearest levels and calibrated, on the same grids."""
    folder = tmp_path_factory.mktemp("calibrated")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_plan, "TYPES", onnx_plan.TYPES | onnx_plan.CALIBRATED)
        plain = converted(folder / "plain", request.param, calibrate=False)
    return plain, converted(folder / "calibrated", request.param)


def logits(artifact):
    found = []
    for text in TEXTS:
        ids = artifact_tokens(text)
        backend = OrtBackend(artifact.file("onnx"), artifact.manifest.shape, OrtSettings(256, 1, step_rows=256))
        found.append(backend.forward([Chunk(0, ids, "all")])[0].astype(np.float64))
        backend.close()
    rows = np.concatenate(found)
    rows -= rows.max(axis=1, keepdims=True)
    return rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))


def artifact_tokens(text):
    return Tokenizer.from_file(str(NANO / "tokenizer.json")).encode(text).ids


def test_nano_is_nearer_to_its_exact_self(pair, tmp_path) -> None:
    (plain, _), (calibrated, report) = pair
    with open_checkpoint(NANO, name="nano") as checkpoint:
        convert_checkpoint(checkpoint, tmp_path / "fp32", type="fp32", formats=("onnx",))
    exact = logits(open_artifact(tmp_path / "fp32"))

    def divergence(artifact):
        return float((np.exp(exact) * (exact - logits(artifact))).sum(axis=1).mean())

    assert divergence(calibrated) < 0.8 * divergence(plain)
    larger, _ = converted(tmp_path / "larger", "int4_fast", calibrate=False)  # blocks of half or a quarter
    sizes = [next(one.path.glob("weights-*.data")).stat().st_size for one in (calibrated, larger)]
    assert sizes[0] < sizes[1]
    assert divergence(calibrated) < {"int4": 0.8, "int4_fast": 0.9}[report.type] * divergence(larger)


def test_only_weights_on_grids_of_our_choice_are_others(pair) -> None:
    (plain, _), (calibrated, report) = pair
    one, other = (np.fromfile(next(artifact.path.glob("weights-*.data")), np.uint8) for artifact, _ in pair)
    with open_checkpoint(NANO, name="nano") as checkpoint:
        plan = plan_onnx(CheckpointWeights(checkpoint), report.type, calibrated=True)
    changed = np.flatnonzero(one != other)
    free = np.zeros(len(one), bool)
    for planned in plan.matrices.values():
        matrix = planned.matrix
        for place in (matrix.weight, matrix.scales, matrix.zeros):
            if matrix.grid.bits == 4:
                free[place.offset : place.offset + place.nbytes] = True
    assert len(changed) > 0.05 * free.sum()
    assert free[changed].all()
    table = plan.matrices["table"].matrix.weight
    assert ((changed >= table.offset) & (changed < table.offset + table.nbytes)).sum() > 0.05 * table.nbytes
    assert plain.manifest.files.keys() != calibrated.manifest.files.keys()  # named by what they hold
    assert report.calibrated_on == sum(
        map(len, calibration_pages(Tokenizer.from_file(str(NANO / "tokenizer.json")), 4096))
    )
    assert pair[0][1].calibrated_on is None


def test_the_hash_is_that_of_what_was_written_last(pair) -> None:
    _, (calibrated, _) = pair
    open_artifact(calibrated.path, verify="full")


@pytest.mark.parametrize(
    ("type", "formats"), [("int8", ("onnx",)), ("q4_0", ("onnx",)), ("q4_k_m", ("gguf",)), ("int4", ("gguf", "onnx"))]
)
def test_what_has_its_own_grid_is_refused(tmp_path, type, formats) -> None:
    with open_checkpoint(NANO, name="nano") as checkpoint, pytest.raises(RequestError, match="int4 and int4_fast"):
        convert_checkpoint(checkpoint, tmp_path / "out", type=type, formats=formats, calibrate=True)
    assert not list(tmp_path.iterdir())


def test_a_missing_engine_is_named(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(build, "find_spec", lambda _: None)
    with pytest.raises(RequestError, match=r"edgeqwen\[onnx\]"):
        converted(tmp_path / "out")


@pytest.fixture
def few_pages(monkeypatch, tmp_path):
    """Two pages to calibrate on, where it does not matter how well."""
    text = lzma.decompress((files("converters") / onnx_calibration._TEXT).read_bytes()).decode()
    (tmp_path / "few.xz").write_bytes(lzma.compress("\f".join(text.split("\f")[:2]).encode()))
    monkeypatch.setattr(onnx_calibration, "files", lambda _: tmp_path)
    monkeypatch.setattr(onnx_calibration, "_TEXT", "few.xz")


@pytest.mark.usefixtures("few_pages")
@pytest.mark.parametrize("type", ["int4", "int4_fast"])
def test_twice_is_the_same(tmp_path, type) -> None:
    seen = []
    one, _ = converted(tmp_path / "one", type)
    other, _ = converted(tmp_path / "other", type, progress=lambda *step: seen.append(step))
    assert one.manifest.files == other.manifest.files
    layers = [(done, total) for done, total, what in seen if what == CALIBRATING]
    assert layers == [(number, layers[0][1]) for number in range(layers[0][1])]


def test_text_that_ends_at_once_is_no_text(monkeypatch, tmp_path) -> None:
    """A page shorter than what is left out at its start still counts."""
    (tmp_path / "short.xz").write_bytes(lzma.compress(b"a\fb"))
    monkeypatch.setattr(onnx_calibration, "files", lambda _: tmp_path)
    monkeypatch.setattr(onnx_calibration, "_TEXT", "short.xz")
    _, report = converted(tmp_path / "out")
    assert report.calibrated_on == 2


@pytest.mark.usefixtures("few_pages")
def test_ctrl_c_leaves_nothing(tmp_path) -> None:
    def stopped(done, _total, what):
        if what == CALIBRATING and done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        converted(tmp_path / "out", progress=stopped)
    assert not (tmp_path / "out").exists()


def test_a_token_far_above_the_others_counts_as_ten_of_them() -> None:
    tokens = np.ones((2, 3, 4), np.float32)
    tokens[0, 0] = 1000  # the first of a text
    tokens[1, 1:] = 7  # padding
    tamed = onnx_calibration._tamed(tokens, [0, 1, 2, 3])
    np.testing.assert_allclose(tamed, [[10] * 4, *[[1] * 4] * 3])
    assert tokens[0, 0, 0] == 1000


@pytest.mark.usefixtures("few_pages")
def test_bytes_that_come_back_otherwise_are_refused(monkeypatch, tmp_path) -> None:
    rounded = onnx_calibration._round_head

    def damaging(plan, batches, rounding) -> None:
        rounded(plan, batches, rounding)
        offset, *_ = rounding._written[7]
        rounding._data[offset] ^= 1

    monkeypatch.setattr(onnx_calibration, "_round_head", damaging)
    with pytest.raises(ArtifactError, match="other bytes than were written"):
        converted(tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("few_pages")
def test_batches_lie_in_a_file_no_larger_than_what_is_reserved(monkeypatch, tmp_path) -> None:
    sizes, reserved = [], []

    class Watched(Spill):
        def __setitem__(self, at, values):
            super().__setitem__(at, values)
            sizes.append(self._end)

    monkeypatch.setattr(onnx_calibration, "Spill", Watched)
    monkeypatch.setattr(ArtifactWriter, "reserve", lambda _, nbytes: reserved.append(nbytes))
    artifact, _ = converted(tmp_path / "out")
    plain, _ = converted(tmp_path / "fp32", "fp32", calibrate=False)
    spilled = spilled_bytes(artifact.manifest.shape.hidden_size)
    assert 0.7 * spilled < sizes[-1] <= spilled
    data = [next(one.path.glob("weights-*.data")).stat().st_size for one in (artifact, plain)]
    assert reserved[0] - reserved[1] == spilled + data[0] - data[1]


def test_pages_are_apart_and_long_enough() -> None:
    pages = calibration_pages(Tokenizer.from_file(str(NANO / "tokenizer.json")), 4096)
    assert len(pages) > 20
    assert all(150 < len(page) <= 256 for page in pages)
