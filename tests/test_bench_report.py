"""What a bench's figures look like: Markdown, JSON, CSV, pictures."""

import csv
import io
import json
import re
from dataclasses import replace
from xml.etree import ElementTree as ET

import pytest
from PIL import Image, ImageFont

from edgeqwen import drawing
from edgeqwen.bandwidth import Bandwidth
from edgeqwen.bench_plot import _ticks, plot
from edgeqwen.bench_report import Report, Row, Run, Taken, as_dict, flat_rows
from edgeqwen.cli.bench_table import FORMATS
from edgeqwen.drawing import check_picture, svg, write_picture
from edgeqwen.errors import EngineMissingError, RequestError
from edgeqwen.power import Power
from edgeqwen.process_memory import Memory
from edgeqwen.speed import Sample

MIB = 1 << 20


def made_up(model="model", **changes):
    """A report whose figures can be worked out by hand."""
    samples = (Sample("decode", 10, 0, seconds, native_s=0.9 * seconds) for seconds in (0.5, 1.0, 0.25))
    decode = tuple(map(Taken, samples))
    row = Row("decode", 10, 0, decode, bytes_per_token=2.5e8)
    first = Row("first_token", 128, 0, (Taken(Sample("first_token", 128, 0, 0.0123)),))
    load = Row("load", 0, 0, (Taken(Sample("load", 0, 0, 2.5)), Taken(Sample("load", 0, 0, 1.5))))
    memory = Memory(300 * MIB, 100 * MIB, 200 * MIB)
    run = Run(
        "llamacpp", "1.2", "gguf", "q4_0", 2, "f16", 512, Bandwidth(1e10, 2, 256 * MIB), memory, (load, first, row)
    )
    machine = {"cpu": "CPU", "board": None, "cores": 2, "memory_bytes": 1 << 33, "system": "OS", "python": "3", "edgeqwen": "1"}  # fmt: skip  # noqa: E501
    return replace(Report(model, machine, 1 << 20, 3, {"gguf": 500_000_000}, {"llamacpp": 1024}, (run,)), **changes)


def test_median_and_spread():
    row = made_up().runs[0].rows[2]
    assert (row.tokens_per_s.median, row.tokens_per_s.least, row.tokens_per_s.most) == (20, 10, 40)
    assert row.outside_share == pytest.approx(0.1)
    assert made_up().runs[0].rows[0].tokens_per_s is None


def test_markdown_is_aligned_and_has_units():
    text = FORMATS["md"](made_up())
    tables = re.findall(r"(?:^\|.*\n?)+", text, re.MULTILINE)
    assert len(tables) == 2
    for table in tables:
        assert len({len(line) for line in table.splitlines()}) == 1
    speed, memory = tables
    assert re.search(r"decode 10 +\| +0 \| +20.0 tokens/s \| +10.0 - 40.0 \| 50 % of 10.0 GB/s", speed)
    assert re.search(r"first token 128 \| +0 \| +12.3 ms \| +\|", speed)
    assert re.search(r"load +\| +\| +2.00 s \| +1.50 - 2.50 \|", speed)
    assert re.search(r"512 \| f16 +\| 300 MiB \| 100 MiB \| +200 MiB", memory)
    assert "500.0 MB of weights, and 1 KiB" in text
    assert max(map(len, text.splitlines())) <= 80
    assert "llamacpp 1.2, q4_0, 2 threads" in text
    assert "threads |" not in text


def test_several_runs_are_told_apart_by_columns():
    report = made_up()
    text = FORMATS["md"](replace(report, runs=(*report.runs, replace(report.runs[0], threads=4))))
    assert text.count("| llamacpp | q4_0 |       4 |") == 3 + 1


def test_a_stopped_report_says_so():
    assert "stopped before the end: median, least and most of up to 3" in FORMATS["md"](made_up(stopped=True))
    assert "stopped" not in FORMATS["md"](made_up())


def test_weights_in_the_processors_cache_are_marked():
    assert "memory does not limit" not in FORMATS["md"](made_up())
    assert "memory does not limit" in FORMATS["md"](made_up(cache_bytes=1 << 30))


def hot():
    """The made-up report on a board that was throttled in one sample of the decoding; its readings are made up, too."""
    report = made_up()
    (run,) = report.runs
    cool, warm = Power(48.2, 2_400_000_000, 2_400_000_000), Power(84.6, 1_500_000_000, 2_400_000_000, ("throttled",))
    decode = run.rows[2]
    taken = [replace(one, power=cool) for one in decode.samples[:2]]
    taken.append(replace(decode.samples[2], power=warm, slowed=warm.slowed))
    rows = (*run.rows[:2], replace(decode, samples=tuple(taken)))
    return replace(report, runs=(replace(run, rows=rows),))


def test_heat_and_clock_stand_beside_every_sample_and_a_throttled_run_says_so():
    text = FORMATS["md"](hot())
    assert re.search(r"\| decode 10 ! +\|", text)
    flat = " ".join(text.split())
    assert "heat and clock: 48 to 85 °C, 1500 to 2400 of 2400 MHz" in flat
    assert "! the machine was held back in 1 of 6 samples (throttled): it can do better" in flat
    assert max(map(len, text.splitlines())) <= 80
    row = as_dict(hot())["runs"][0]["rows"][2]
    assert row["samples_temperature_c"] == [48.2, 48.2, 84.6]
    assert row["samples_frequency_hz"] == [2_400_000_000, 2_400_000_000, 1_500_000_000]
    assert row["samples_slowed"] == [(), (), ("throttled",)]
    assert as_dict(hot())["slowed"] == ("throttled",)
    flat_row = list(flat_rows(hot()))[2]
    assert (flat_row["temperature_c"], flat_row["frequency_hz"], flat_row["slowed"]) == (84.6, 1.5e9, "throttled")


def test_a_run_at_full_speed_says_nothing_of_throttling():
    text = FORMATS["md"](made_up())
    assert "held back" not in text
    assert "!" not in text
    assert "heat and clock: this system does not tell them" in " ".join(text.split())


def test_names_cannot_command_a_terminal():
    report = made_up(model="千问\x1b[2J\n|")
    for kind, text in ((kind, make(report)) for kind, make in FORMATS.items()):
        assert "\x1b" not in text, kind
    assert FORMATS["md"](report).startswith("千问\\x1b[2J")
    assert json.loads(FORMATS["json"](report))["model"] == report.model


def test_machine_readable_forms_have_the_same_figures():
    report = made_up()
    whole = json.loads(FORMATS["json"](report))
    assert whole == json.loads(json.dumps(as_dict(report)))
    assert whole["runs"][0]["rows"][2]["samples_s"] == [0.5, 1.0, 0.25]
    lines = [json.loads(line) for line in FORMATS["jsonl"](report).splitlines()]
    assert lines == list(flat_rows(report))
    assert [line["tokens_per_s"] for line in lines] == [None, None, 20.0]
    table = list(csv.DictReader(io.StringIO(FORMATS["csv"](report))))
    assert [row["seconds"] for row in table] == ["2.0", "0.0123", "0.5"]
    assert [row["peak_bytes"] for row in table] == [str(300 * MIB)] * 3


def test_the_picture_shows_every_bar_and_the_limit():
    text = svg(plot(made_up(model="千问 <&>")))
    root = ET.fromstring(text)
    boxes = [e for e in root.iter() if e.tag.endswith("rect")]
    words = [e.text for e in root.iter() if e.tag.endswith("text")]
    assert words[0] == "千问 <&> on CPU"
    assert len(boxes) == 1 + 1 + 2  # the ground, the legend's, decode and first token
    assert {"20.0", "12.3", "Decode, tokens/s", "limit that the memory's bandwidth sets"} <= set(words)
    assert "limit" not in svg(plot(made_up(cache_bytes=1 << 30)))


@pytest.mark.parametrize(
    ("most", "last"), [(1, 1), (7, 7), (7.1, 8), (0.3, 0.3), (99, 100), (231, 250), (2160, 2500), (1e-3, 1e-3)]
)
def test_an_axis_ends_at_a_round_number(most, last):
    ticks = _ticks(most)
    assert ticks[-1] == pytest.approx(last)
    assert 4 <= len(ticks) <= 9


def test_pictures_are_written(tmp_path):
    write_picture(plot(made_up()), tmp_path / "a.svg")
    write_picture(plot(made_up()), tmp_path / "a.PNG")
    assert (tmp_path / "a.svg").read_text(encoding="utf-8").startswith("<svg")
    image = Image.open(tmp_path / "a.PNG")
    assert image.width == 2 * 820
    assert len(image.getcolors(1 << 16)) > 10


def test_chinese_names_get_a_font_that_has_them(tmp_path, monkeypatch):
    asked, original = [], ImageFont.truetype

    def truetype(file, *rest, **options):
        if not isinstance(file, str):  # the font that Pillow carries
            return original(file, *rest, **options)
        asked.append(file)
        raise OSError("cannot open resource")

    drawing._font.cache_clear()
    monkeypatch.setattr(ImageFont, "truetype", truetype)
    write_picture(plot(made_up(model="千问")), tmp_path / "a.png")
    assert asked[: len(drawing.CHINESE_FONTS)] == list(drawing.CHINESE_FONTS)
    drawing._font.cache_clear()


def test_a_picture_that_cannot_be_drawn_is_refused_before_the_work(tmp_path, monkeypatch):
    for name in ("a.gif", "a", "absent/a.svg"):
        with pytest.raises(RequestError):
            check_picture(tmp_path / name)
    monkeypatch.setattr("edgeqwen.drawing.find_spec", lambda _: None)
    check_picture(tmp_path / "a.svg")
    with pytest.raises(EngineMissingError, match=r"pip install 'edgeqwen\[plot\]'"):
        check_picture(tmp_path / "a.png")
