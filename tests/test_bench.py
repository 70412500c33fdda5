"""What bench measures, what it remembers, and how it ends when something goes wrong."""

import io
import json
import mmap
from dataclasses import replace

import click
import psutil
import pytest
from click.testing import CliRunner
from scripted_model import END, TOKENIZER, model_saying

from edgeqwen import bench as bench_module
from edgeqwen import bench_process, power, speed_record
from edgeqwen.bandwidth import SMALLEST_BYTES, Bandwidth, read_bandwidth
from edgeqwen.bench import PRESETS, BenchSettings, bench
from edgeqwen.bench_process import Request, samples
from edgeqwen.choice import choose
from edgeqwen.cli import edgeqwen
from edgeqwen.engines import ENGINES
from edgeqwen.errors import EngineError, RequestError
from edgeqwen.memory_need import kv_bytes_per_token
from edgeqwen.model import load
from edgeqwen.outline import outline
from edgeqwen.process_memory import MemoryWatch
from edgeqwen.speed import Sample, _question, append, decode_sample, measure, prompt_sample
from edgeqwen.speed_record import Speed, decode_speeds, keep_speeds

MIB = 1 << 20
TINY = BenchSettings(prompts=(3,), generate=(4,), depths=(0, 8), threads=(1,), repeat=2)


@pytest.fixture
def one_core(monkeypatch):
    """A machine whose default is the one thread of TINY."""
    for module in (bench_module, speed_record):
        monkeypatch.setattr(module, "physical_cores", lambda: 1)


def ends(_ids):
    """An engine that ends every answer at once."""
    return END


def rows_of(report):
    return {(row.test, row.tokens, row.depth): row for run in report.runs for row in run.rows}


# What is measured.


def test_a_prompt_goes_in_whole_steps_and_decoding_one_by_one():
    model = model_saying(ends, step_tokens=4)
    append(model.backend, range(6))
    assert model.backend.forwarded == [(0, 4), (0, 2)]
    model.backend.forwarded.clear()
    prompt_sample(model.backend, 5, 6, passes=2)
    assert model.backend.forwarded == [(0, 4), (0, 1)] * 2
    assert model.backend.length(0) == 6 + 5
    model.backend.forwarded.clear()
    decode_sample(model.backend, 3, 6)
    assert model.backend.forwarded == [(0, 1)] * 3
    assert model.backend.length(0) == 6 + 3


def test_every_combination_is_measured_as_often_as_asked_and_in_turns():
    found = list(measure(model_saying(ends), prompts=(2, 12), generate=(3,), depths=(0, 5), repeat=2))
    keys = [(sample.test, sample.tokens, sample.depth) for sample in found]
    one_depth = [("prompt", 2), ("prompt", 12), ("decode", 3)]
    assert keys[:4] == [("first_token", 2, 0), ("first_token", 12, 0)] * 2
    assert keys[4:] == [(*test, depth) for depth in (0, 5) for _ in range(2) for test in one_depth]
    assert all(sample.seconds > 0 for sample in found)


def test_depth_is_what_stands_in_front():
    model = model_saying(ends)
    lengths = []
    truncate = model.backend.truncate
    model.backend.truncate = lambda sequence, length: (lengths.append(length), truncate(sequence, length))
    list(measure(model, prompts=(), generate=(2,), depths=(7,), repeat=1))
    assert lengths == [0, 7, 7]  # emptied and filled; then the warm-up and the sample, each behind 7 tokens


@pytest.mark.parametrize("tokens", [1, 2, 12, 18, 128])
def test_a_question_has_as_many_tokens_as_asked(tokens):
    assert len(TOKENIZER.encode(_question(tokens))) == tokens


def test_a_question_that_does_not_fit_is_left_out():
    model = model_saying(ends, context_length=64)
    found = list(measure(model, prompts=(8, 63), generate=(), depths=(0,), repeat=1))
    assert [(s.test, s.tokens) for s in found] == [("first_token", 8), ("prompt", 8), ("prompt", 63)]


def test_nano_is_measured_in_a_process_of_its_own(one_core, nano_artifact):
    seen = []
    artifact = nano_artifact("q8_0")
    report = bench(artifact, TINY, progress=lambda *args: seen.append(args))
    rows = rows_of(report)
    tests = [("load", 0, 0), ("first_token", 3, 0), *((t, n, d) for d in (0, 8) for t, n in (("prompt", 3), ("decode", 4)))]  # fmt: skip  # noqa: E501
    assert list(rows) == tests
    assert all(len(row.samples) == 2 for row in rows.values())
    assert seen[-1] == (12, 12, "measuring llamacpp, 1 thread")
    (run,) = report.runs
    assert (run.engine, run.type, run.threads, run.context_length) == ("llamacpp", "q8_0", 1, 256)
    assert run.memory.peak_bytes > 30 * MIB
    model = outline(artifact)
    weights = model.weights["gguf"].total_bytes
    assert weights < run.memory.mapped_bytes < run.memory.peak_bytes
    decode = rows["decode", 4, 8]
    assert decode.bytes_per_token == weights + 10.5 * kv_bytes_per_token(model.shape)
    speed = decode.tokens_per_s.median
    assert run.bandwidth_share(decode) == pytest.approx(speed * decode.bytes_per_token / run.bandwidth.bytes_per_s)
    assert 0 < decode.outside_share < 1
    assert decode_speeds(model.digest) == {"llamacpp": rows["decode", 4, 0].tokens_per_s.median}


def test_both_engines_are_measured_and_the_faster_one_is_taken(one_core, nano_artifact):
    both = nano_artifact("int4", "gguf", "onnx")
    model = outline(both)
    assert choose(model).engine == "llamacpp"
    report = bench(both, replace(TINY, depths=(0,)))
    assert [(run.engine, run.kv_type) for run in report.runs] == [("llamacpp", "f16"), ("ort", "f32")]
    assert report.failures == ()
    speeds = {run.engine: run.of("decode")[0].tokens_per_s.median for run in report.runs}
    plan = choose(model)
    assert plan.engine == max(speeds, key=speeds.get)
    assert plan.reasons[0].startswith(
        f"{plan.engine}: measured here, tokens/s: {plan.engine} {max(speeds.values()):.1f}"
    )
    with load(both) as loaded:
        assert loaded.card.plan == replace(plan, need=loaded.card.plan.need)
    gguf, onnx = (model.weights[kind].read_bytes for kind in ("gguf", "onnx"))
    assert 1 < onnx / gguf < 1.15  # the same grid; its scales have 32 bits in ONNX and 16 in GGUF
    (alone,) = bench(both, replace(TINY, depths=(0,), engines=("ort",))).runs
    assert alone.engine == "ort"


def test_memory_is_told_apart(tmp_path):
    path = tmp_path / "mapped"
    path.write_bytes(bytes(32 * MIB))
    with MemoryWatch() as watch:
        before = watch.memory
        # A map of its own: a large array may come out of memory that the process has freed and still holds.
        held = mmap.mmap(-1, 48 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        held.write(b"x" * len(held))
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            assert sum(mapped[:: mmap.PAGESIZE]) == 0
            after = watch.memory
    held.close()
    if before.anonymous_bytes is None:
        pytest.skip("this system does not tell")
    assert 47 * MIB < after.anonymous_bytes - before.anonymous_bytes < 64 * MIB
    assert 31 * MIB < after.mapped_bytes - before.mapped_bytes < 40 * MIB
    assert after.peak_bytes > 79 * MIB


def test_memory_that_nobody_tells_is_unknown(tmp_path):
    with MemoryWatch(tmp_path / "absent") as watch:
        found = watch.memory
    assert (found.mapped_bytes, found.anonymous_bytes) == (None, None)
    assert found.peak_bytes is None or found.peak_bytes > MIB


def test_the_bandwidth_says_how_it_was_measured():
    found = read_bandwidth(2, memory_available_bytes=MIB)
    assert found.array_bytes == SMALLEST_BYTES
    assert found.bytes_per_s > 1e8
    assert "32 MiB, a part for each of 2 threads, best of 8" in found.method
    assert "1 thread," in Bandwidth(1.0, 1, MIB).method


# What goes wrong.


def request(path, **changes):
    return replace(
        Request(str(path), "llamacpp", 1, (2,), (2,), (0,), 1, 256, "f16", 0, trust_template=False), **changes
    )


def test_an_error_in_the_process_is_raised_here(tmp_path):
    with pytest.raises(RequestError, match="no model"):
        list(samples(request(tmp_path / "absent")))


def test_a_process_that_is_killed_says_so(nano_artifact):
    found = samples(request(nano_artifact("q8_0"), generate=(200,), repeat=50))
    next(found)
    (child,) = psutil.Process().children()
    child.kill()
    with pytest.raises(EngineError, match="SIGKILL: memory was probably too short"):
        list(found)


def test_a_reader_that_stops_leaves_no_process(nano_artifact):
    found = samples(request(nano_artifact("q8_0"), generate=(200,), repeat=50))
    next(found)
    (child,) = psutil.Process().children()
    found.close()
    assert not child.is_running()


@pytest.mark.parametrize(
    ("code", "words"),
    [(-9, "too short"), (-4, "another processor"), (-11, "SIGSEGV: last words"), (3, "3: last words")],
)
def test_how_a_process_died(code, words):
    assert words in bench_process._death("ort", code, io.BytesIO(b"much\nlast words\n"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prompts": (), "generate": ()}, "nothing to measure"),
        ({"depths": ()}, "nothing to measure"),
        ({"depths": (4000,)}, "128 tokens behind 4000 are 4128: this model was made for 4096"),
        ({"depths": (-1,)}, "depths=-1"),
        ({"prompts": (0,)}, "prompts=0"),
        ({"threads": (0,)}, "threads=0"),
        ({"repeat": 0}, "repeat=0"),
        ({"context_length": 100}, "the tests need 128"),
        ({"engines": ("vllm",)}, "auto, llamacpp, ort"),
        ({"engines": ("ort",)}, "ort reads onnx"),
    ],
)
def test_what_cannot_be_measured_is_refused(nano_artifact, changes, words):
    settings = replace(BenchSettings(prompts=(8,), depths=(0,)), **changes)
    with pytest.raises(RequestError, match=words):
        bench(nano_artifact("q8_0"), settings)


def stub(monkeypatch, behaviour):
    """Let `behaviour` stand for the process."""
    monkeypatch.setattr(bench_module, "samples", behaviour)
    monkeypatch.setattr(bench_module, "read_bandwidth", lambda threads, _: Bandwidth(1e10, threads, MIB))


def test_a_limit_is_the_best_bandwidth_that_was_seen(nano_artifact, monkeypatch):
    stub(monkeypatch, lambda _: iter([Sample("decode", 4, 0, 0.1)]))
    seen = iter([3e10, 1e10, 1e10, 2e10])
    monkeypatch.setattr(bench_module, "read_bandwidth", lambda threads, _: Bandwidth(next(seen), threads, MIB))
    monkeypatch.setattr(bench_module, "_engines", lambda *_: [ENGINES["llamacpp"]] * 2)
    report = bench(nano_artifact("q8_0"), replace(TINY, threads=(1,)))
    assert [run.bandwidth.bytes_per_s for run in report.runs] == [3e10, 3e10]


def broken_off(_request):
    yield Sample("load", 0, 0, 0.5)
    yield Sample("decode", 4, 0, 0.1)
    raise KeyboardInterrupt


def test_ctrl_c_keeps_what_was_measured(nano_artifact, monkeypatch):
    stub(monkeypatch, broken_off)
    report = bench(nano_artifact("q8_0"), replace(TINY, threads=(1, 2)))
    assert report.stopped
    assert list(rows_of(report)) == [("load", 0, 0), ("decode", 4, 0)]
    assert [run.threads for run in report.runs] == [1]
    result = CliRunner().invoke(edgeqwen, ["bench", str(nano_artifact("q8_0"))], standalone_mode=False)
    assert isinstance(result.exception, click.Abort)  # what click makes of Ctrl-C
    assert "40.0 tokens/s" in result.stdout


def test_ctrl_c_between_two_configurations_keeps_the_first(nano_artifact, monkeypatch):
    stub(monkeypatch, lambda _: iter([Sample("decode", 4, 0, 0.1)]))
    calls = []

    def interrupted_at_the_third(threads, _):
        calls.append(threads)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return Bandwidth(len(calls) * 1e10, threads, MIB)

    monkeypatch.setattr(bench_module, "read_bandwidth", interrupted_at_the_third)
    report = bench(nano_artifact("q8_0"), replace(TINY, threads=(1, 2)))
    assert report.stopped
    assert [(run.threads, run.bandwidth.bytes_per_s) for run in report.runs] == [(1, 2e10)]


def test_one_configuration_that_fails_leaves_the_others(nano_artifact, monkeypatch):
    def two_fail(request):
        if request.threads == 2:
            raise EngineError("it broke")
        yield Sample("decode", 4, 0, 0.1)

    stub(monkeypatch, two_fail)
    report = bench(nano_artifact("q8_0"), replace(TINY, threads=(1, 2)))
    assert report.failures == ("llamacpp, 2 threads: it broke",)
    assert [run.threads for run in report.runs] == [1]
    with pytest.raises(EngineError, match="it broke"):
        bench(nano_artifact("q8_0"), replace(TINY, threads=(2,)))
    result = CliRunner().invoke(edgeqwen, ["bench", str(nano_artifact("q8_0")), "--threads", "1,2", "-o", "csv"])
    assert result.exit_code == 1
    assert "it broke" in result.stderr
    assert result.stdout.count("\n") == 2


def test_a_run_that_is_throttled_says_so_and_is_not_remembered(one_core, nano_artifact, monkeypatch, tmp_path):
    """A file stands in for the one of a Raspberry Pi's kernel, and turns hot between two samples."""
    flags = tmp_path / "devices/platform/soc/soc:firmware/get_throttled"
    flags.parent.mkdir(parents=True)
    flags.write_text("0")
    monkeypatch.setattr(power, "SYSFS", tmp_path)

    def heats_up(_request):
        yield Sample("load", 0, 0, 0.5)
        yield Sample("decode", 4, 0, 0.1)
        flags.write_text("40004")
        yield Sample("decode", 4, 0, 0.2)
        flags.write_text("40000")
        yield Sample("decode", 4, 0, 0.1)

    stub(monkeypatch, heats_up)
    model = nano_artifact("q8_0")
    rows = rows_of(bench(model, replace(TINY, threads=(1,))))
    assert [taken.slowed for taken in rows["decode", 4, 0].samples] == [(), ("throttled",), ()]
    assert rows["load", 0, 0].slowed == ()
    assert decode_speeds(outline(model).digest) == {}
    flags.write_text("0")
    stub(monkeypatch, lambda _: iter([Sample("decode", 4, 0, 0.1)]))
    bench(model, replace(TINY, threads=(1,)))
    assert decode_speeds(outline(model).digest)


def test_only_what_can_be_held_side_by_side_is_remembered(one_core, nano_artifact, monkeypatch):
    stub(monkeypatch, lambda request: iter([Sample("decode", 4, request.depths[0], 0.1)]))
    model = nano_artifact("q8_0")
    bench(model, TINY)
    remembered = {"llamacpp": 40.0}
    assert decode_speeds(outline(model).digest) == remembered
    stub(monkeypatch, lambda request: iter([Sample("decode", 4, request.depths[0], 0.4)]))
    for other in ({"depths": (8,)}, {"threads": (2,)}, {"kv_type": "f32"}):
        bench(model, replace(TINY, **other))
        assert decode_speeds(outline(model).digest) == remembered, other


# The record.


SPEED = Speed("CPU", "1.0", 2, 12.5)


@pytest.fixture
def known(monkeypatch):
    """A machine and versions that are known."""
    monkeypatch.setattr(speed_record, "cpu_name", lambda: "CPU")
    monkeypatch.setattr(speed_record, "physical_cores", lambda: 2)
    monkeypatch.setattr(type(ENGINES["ort"]), "version", "1.0")


def test_speeds_are_kept_and_added_to(known):
    assert decode_speeds("a" * 64) == decode_speeds(None) == {}
    keep_speeds("a" * 64, {"ort": SPEED})
    path = keep_speeds("a" * 64, {"llamacpp": replace(SPEED, decode_tokens_per_s=9.0)})
    assert decode_speeds("a" * 64) == {"ort": 12.5, "llamacpp": 9.0}
    assert decode_speeds("b" * 64) == {}
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    "other", [{"cpu": "another"}, {"version": "0.9"}, {"threads": 1}, {"decode_tokens_per_s": 0.0}]
)
def test_speeds_of_another_machine_or_version_do_not_count(known, other):
    keep_speeds("a" * 64, {"ort": replace(SPEED, **other), "llamacpp": SPEED})
    assert decode_speeds("a" * 64) == {"llamacpp": 12.5}


@pytest.mark.parametrize("text", ["", "[]", '{"ort": 3}', '{"ort": {"cpu": 1}}', "[" * 100_000, "\xff"])
def test_a_damaged_record_is_none(known, text):
    path = keep_speeds("a" * 64, {"ort": SPEED})
    path.write_text(text, encoding="latin-1")
    assert decode_speeds("a" * 64) == {}


def test_a_record_that_cannot_be_written_is_a_warning(known, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EDGEQWEN_HOME", str(tmp_path / "file"))
    assert keep_speeds("a" * 64, {"ort": SPEED}) is None
    assert "cannot be written" in caplog.text


# The command.


def test_the_command_measures_prints_and_draws(nano_artifact, tmp_path):
    arguments = ["bench", str(nano_artifact("q8_0")), "--prompt", "2，3", "--generate", "0", "--depth", "0"]
    result = CliRunner().invoke(
        edgeqwen, [*arguments, "--repeat", "1", "-o", "jsonl", "--plot", str(tmp_path / "x.svg")]
    )
    assert result.exit_code == 0, result.output
    found = [(row["test"], row["tokens"]) for row in map(json.loads, result.stdout.splitlines())]
    assert found == [("load", 0), ("first_token", 2), ("first_token", 3), ("prompt", 2), ("prompt", 3)]
    assert (tmp_path / "x.svg").is_file()


def test_the_presets():
    assert PRESETS["short"].prompts == (2, 12, 18)
    assert PRESETS["standard"] == BenchSettings()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--prompt", "12,x"], 2, "'12,x' is no whole number"),
        (["--threads", ""], 2, "no whole number"),
        (["--prompt", "0", "--generate", "0"], 1, "nothing to measure"),
        (["--engine", "llamacpp,vllm"], 1, "vllm"),
        (["--plot", "x.gif"], 1, ".svg or .png"),
        (["--repeat", "0"], 2, "repeat"),
        (["--depth", "9999999"], 1, "made for 4096"),
    ],
)
def test_wrong_options_are_told(nano_artifact, arguments, code, words):
    result = CliRunner().invoke(edgeqwen, ["bench", str(nano_artifact("q8_0")), *arguments])
    assert (result.exit_code, result.stdout) == (code, "")
    assert words in (result.stderr or str(result.exception)) + str(result.exception)
