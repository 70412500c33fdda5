"""The examples that need nothing beyond edgeqwen, run as they stand on nano; tests/clients runs the others."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"


def run(name, *words):
    done = subprocess.run(
        [sys.executable, EXAMPLES / name, *map(str, words)],
        capture_output=True, text=True, encoding="utf-8", timeout=120, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def nano(nano_artifact):
    return nano_artifact("q8_0")


def test_every_example_is_run_and_listed():
    here = Path(__file__).read_text(encoding="utf-8") + (ROOT / "tests/clients/test_example_clients.py").read_text(
        "utf-8"
    )
    listed = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    for path in EXAMPLES.glob("*.py"):
        assert path.stem in here, f"no test runs {path.name}"
        assert f"[{path.name}]({path.name})" in listed, f"README.md does not list {path.name}"
        compile(path.read_text(encoding="utf-8"), path.name, "exec")


def test_the_tutor_shows_the_working_and_the_answer_apart(nano):
    working, _, answer = run("maths_tutor.py", "What is 123 + 456?", "--model", nano).partition("\nanswer: ")
    assert "579" in answer
    assert "9" in working
    assert working.startswith("\033[2mworking:")
    assert "\033[0m" in working, "the answer is not dimmed"
    assert "</think>" not in working + answer


def test_a_tutor_that_is_cut_short_still_answers(nano):
    working, _, answer = run("maths_tutor.py", "--model", nano, "--budget", "16").partition("\nanswer: ")
    assert "Considering the limited time" in working
    assert answer.strip("\033[0m\n ")


def test_the_sensor_loop_judges_each_reading_in_one_of_its_words(nano):
    lines = [json.loads(line) for line in run("sensor_loop.py", "--model", nano).splitlines()]
    assert [line["degrees"] for line in lines] == [21.5, 64.0, 88.5]
    assert {line["verdict"] for line in lines} <= {"ok", "warm", "alarm"}


def test_the_sensor_loop_drops_what_came_too_late(nano):
    lines = [json.loads(line) for line in run("sensor_loop.py", "--model", nano, "--every", "0").splitlines()]
    assert [line for line in lines if "skipped" in line]
    assert lines[-1]["degrees"] == 88.5, "the last reading is answered, after those that were cancelled"


def test_the_sensor_loop_reads_a_file_of_the_kernels_kind(nano, tmp_path):
    (tmp_path / "temp").write_text("48312\n")  # stands in for a thermal zone
    words = ["--model", nano, "--sensor", tmp_path / "temp", "--count", "2"]
    assert [json.loads(line)["degrees"] for line in run("sensor_loop.py", *words).splitlines()] == [48.312] * 2


def test_retrieval_finds_the_passage_and_names_it(nano, tmp_path):
    (tmp_path / "tanks.md").write_text("The south tank is fed by valve 3.\n\nValve 7 feeds the north tank.\n", "utf-8")
    (tmp_path / "pumps.txt").write_text("Pumps are oiled in May.\n\n水泵每年五月上油。\n", "utf-8")
    words = ["--model", nano, "--passages", "1"]
    answer, sources = run("retrieval.py", tmp_path, "Which valve feeds the north tank?", *words).splitlines()[-2:]
    assert answer
    assert sources == "sources: tanks.md:2"
    assert run("retrieval.py", tmp_path, "水泵", *words).splitlines()[-1] == "sources: pumps.txt:2"
    assert "has a word of the question" in run("retrieval.py", tmp_path, "Quantum?", *words)
