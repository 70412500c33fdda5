"""Batches come back from the file as they went in, whatever it is made of, and leave nothing behind."""

import errno
import os
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
import pytest

from converters import onnx_calibration
from converters.build import convert_checkpoint
from converters.checkpoint import open_checkpoint
from converters.onnx_spill import Spill
from edgeqwen.catalog import NANO
from edgeqwen.errors import ArtifactError


def batch(seed, length=5):
    rng = np.random.default_rng(seed)
    one, other = rng.normal(size=(2, 2, length, 8)).astype(np.float32)
    return {"ids": np.arange(length), "rows": np.array([length, 1], np.int32), "sum": one, "norm": other[:, :, ::-1]}


def assert_same(found, expected):
    for left, right in zip(found, expected, strict=True):
        assert left.keys() == right.keys()
        for name, value in left.items():
            assert value.dtype == right[name].dtype
            np.testing.assert_array_equal(value, right[name])


def test_batches_come_back_as_they_went_in():
    began = [{"ids": np.arange(3)}, {"ids": np.arange(4)}]
    with TemporaryFile() as file:
        spill = Spill(file, began)
        assert_same(spill, began)
        for start in (10, 20, 30):
            for at, _ in enumerate(spill):  # replaced while they are read, as the layers do
                spill[at] = batch(start + at, 4 + at)
            assert_same(spill, [batch(start, 4), batch(start + 1, 5)])
        assert os.fstat(file.fileno()).st_size == 4 * 8 * 2 * 2 * (4 + 5)


def test_no_float_stays_in_memory():
    with TemporaryFile() as file:
        spill = Spill(file, [{}])
        spill[0] = batch(1)
        kept = [value for value in spill._batches[0].values() if isinstance(value, np.ndarray)]
        assert all(value.dtype != np.float32 for value in kept)


def test_a_file_that_lost_its_end_is_refused():
    with TemporaryFile() as file:
        spill = Spill(file, [{}])
        spill[0] = batch(1)
        file.truncate(100)
        with pytest.raises(ArtifactError, match="less than was written"):
            list(spill)


def test_a_full_disk_leaves_nothing(monkeypatch, tmp_path):
    with Path("/dev/full").open("r+b") as full, open_checkpoint(NANO, name="nano") as checkpoint:
        monkeypatch.setattr(onnx_calibration, "TemporaryFile", lambda **_: full)
        with pytest.raises(ArtifactError, match=os.strerror(errno.ENOSPC)):
            convert_checkpoint(
                checkpoint, tmp_path / "out", type="int4", formats=("onnx",), calibrate=True, compare=False
            )
    assert not list(tmp_path.iterdir())
