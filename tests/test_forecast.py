"""`edgeqwen plan`: shapes that are not there yet, hand-computed sizes, what is recommended and what is given up."""

import json

import pytest
from click.testing import CliRunner

from edgeqwen import choice
from edgeqwen import forecast as forecast_module
from edgeqwen import prospect as prospect_module
from edgeqwen.boards import BOARDS, target_named
from edgeqwen.catalog import NANO
from edgeqwen.cli import edgeqwen
from edgeqwen.errors import CheckpointError, RequestError
from edgeqwen.forecast import PREFERENCE, forecast
from edgeqwen.outline import outline
from edgeqwen.plan import RESERVE
from edgeqwen.prospect import prospect
from edgeqwen.published import PUBLISHED, find_published

MIB = 1 << 20
# Parameters as the model cards and the files of the releases have them, a tied embedding once.
PARAMETERS = {
    "Qwen/Qwen3-0.6B": 596_049_920,
    "Qwen/Qwen3-1.7B": 1_720_574_976,
    "Qwen/Qwen3-4B": 4_022_468_096,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "Qwen/Qwen2.5-0.5B-Instruct": 494_032_768,
    "Qwen/Qwen2.5-1.5B-Instruct": 1_543_714_304,
}


def option(found, kind):
    return next(one for one in found.options if one.type == kind)


@pytest.mark.parametrize("name", PARAMETERS)
def test_published_shapes_have_the_published_number_of_parameters(name):
    assert option(prospect(name), "f32").weights.total_bytes == 4 * PARAMETERS[name]


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("0.6b", "Qwen/Qwen3-0.6B"),
        ("qwen3:1.7b", "Qwen/Qwen3-1.7B"),
        ("Qwen/Qwen3-4B", "Qwen/Qwen3-4B"),
        ("qwen2.5-0.5b", "Qwen/Qwen2.5-0.5B-Instruct"),
        ("7b", None),
        ("Qwen/Qwen3-0.6B-Base", None),
    ],
)
def test_published_models_have_short_names(name, known):
    assert find_published(name) == known


@pytest.mark.parametrize(("kind", "format"), [("q4_k_m", "gguf"), ("q8_0", "gguf"), ("int4", "onnx"), ("int8", "onnx")])
def test_what_is_planned_is_what_convert_writes(nano_artifact, kind, format):
    """To the byte: the weights of a checkpoint that is only looked at, and those of the file that is made of it."""
    planned = option(prospect("nano"), kind)
    written = prospect(str(nano_artifact(kind, format)))
    assert written.is_made
    assert planned.weights == written.options[0].weights == outline(nano_artifact(kind, format)).weights[format]
    assert planned.file_bytes == pytest.approx(written.options[0].file_bytes, rel=0.01, abs=200_000)


def test_a_config_alone_is_enough(tmp_path):
    (tmp_path / "config.json").write_bytes((NANO / "config.json").read_bytes())
    for name in (tmp_path, tmp_path / "config.json"):
        assert prospect(str(name)).options == prospect("nano").options
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(CheckpointError, match="llama"):
        prospect(str(tmp_path))
    (tmp_path / "config.json").write_text(" " * (prospect_module.CONFIG_BYTES_MAX + 1))
    with pytest.raises(CheckpointError, match="at most"):
        prospect(str(tmp_path))


def test_what_is_no_model_is_refused(tmp_path):
    with pytest.raises(RequestError, match=r"config\.json"):
        prospect(str(tmp_path))
    with pytest.raises(RequestError, match=r"Qwen/Qwen3-0\.6B"):
        prospect("nonsense")
    with pytest.raises(RequestError, match="no model ''"):
        prospect("")
    with pytest.raises(RequestError, match="pi5-4gb"):
        forecast("0.6b", device="pi6")
    with pytest.raises(RequestError, match="40960"):
        forecast("0.6b", device="laptop", context_length=50000)


@pytest.mark.parametrize("board", BOARDS)
@pytest.mark.parametrize("name", ["0.6b", "4b"])
def test_what_fits_fits_and_the_longest_context_is_the_longest(board, name):
    found = forecast(name, device=board)
    available = target_named(board).device.memory_available_bytes
    for row in found.rows:
        need = row.plan.need
        assert need.total_bytes == need.mapped_bytes + need.anonymous_bytes == sum(need.parts.values())
        assert row.fits == (row.longest_context >= 4096)
        if row.fits:
            assert need.anonymous_bytes <= RESERVE * available
            assert need.total_bytes <= available
        if 0 < row.longest_context < 40960:
            closer = {"device": board, "context_length": row.longest_context}
            fits = {(r.type, r.engine): r.fits for r in forecast(name, **closer).rows}
            assert fits[row.type, row.engine]
    if found.recommended:
        fitting = [row.type for row in found.rows if row.fits and row.engine == "llamacpp"]
        assert found.recommended.type == next(kind for kind in PREFERENCE if kind in fitting)
        assert found.give_up == ()
    else:
        assert found.give_up


def test_without_an_engine_its_line_is_named_and_no_memory_is_given_up(monkeypatch):
    monkeypatch.setattr("edgeqwen.forecast.installed_engines", lambda: ())
    found = forecast("0.6b", device="this")
    assert found.reason.startswith("no engine that runs this model is installed: pip install")
    assert (found.recommended, found.give_up) == (None, ())


def test_512_mb_are_too_little_for_06b_and_it_is_said_what_would_help():
    found = forecast("0.6b", device="pi-zero2", context_length=512)
    assert found.recommended is None
    least = min(row.plan.need.total_bytes for row in found.rows)
    assert f"needs {least // MIB} MiB" in found.give_up[-1]
    smaller = forecast("4b", device="pi4-2gb")
    assert smaller.recommended is None
    assert any("a smaller model: Qwen/Qwen3-1.7B" in line for line in smaller.give_up)
    larger = forecast("8b", device="pi5-4gb")  # first with the context that was asked for
    assert larger.give_up == ("a smaller model: Qwen/Qwen3-4B as q4_k_m fits with 4096 tokens of context",)
    crowd = forecast("1.7b", device="pi4-2gb", parallel=8, context_length=16384)
    assert crowd.recommended is None
    assert any(line.startswith("--context ") for line in crowd.give_up)
    assert any("fewer answers" in line for line in crowd.give_up)


def test_a_pi_4_lays_no_weights_out_anew_and_a_pi_5_does():
    """Its Cortex-A72 has no dotprod (ggml/src/ggml-cpu/repack.cpp)."""
    parts = {
        board: next(row for row in forecast("0.6b", device=board).rows if row.type == "q4_0").plan.need.parts
        for board in ("pi4-4gb", "pi5-4gb", "laptop")
    }
    table, body = 151936 * 1024 * 210 // 256, 440_401_920 * 18 // 32  # Q6_K, and the layers' matrices in Q4_0
    assert parts["pi4-4gb"]["repacked"] == 0
    assert parts["pi5-4gb"]["repacked"] == body + table
    assert parts["laptop"]["repacked"] == body


def test_the_command_prints_a_table_or_json_and_exits_by_what_fits():
    def run(*arguments):
        return CliRunner().invoke(edgeqwen, ["plan", *arguments])

    table = run("1.7b", "--device", "pi5-4gb")
    assert table.exit_code == 0
    assert "<- take this" in table.output
    assert "assumed" in table.output
    data = json.loads(run("1.7b", "--device", "pi5-4gb", "--json").output)
    assert data["recommended"] in data["rows"]
    assert data["kv_bytes_per_token"]["f16"] == 112 * 1024
    assert data["recommended"]["peak_bytes"] == sum(data["recommended"]["parts"].values())
    none = run("0.6b", "--device", "pi-zero2")
    assert none.exit_code == 1
    assert "give up" in none.output
    assert run("nano").exit_code == 0
    assert set(PUBLISHED) >= set(PARAMETERS)


def test_what_was_measured_here_decides_as_it_does_for_run(nano_artifact, monkeypatch):
    both = nano_artifact("int4", "gguf", "onnx")
    assert forecast(str(both)).recommended.engine == "llamacpp"
    for faster, slower in (("ort", "llamacpp"), ("llamacpp", "ort")):
        speeds = {faster: 11.0, slower: 10.0}
        for module in (choice, forecast_module):
            monkeypatch.setattr(module, "decode_speeds", lambda _, speeds=speeds: speeds)
        found = forecast(str(both))
        assert found.recommended.engine == choice.choose(outline(both)).engine == faster
        assert f"measured here, tokens/s: {faster} 11.0, {slower} 10.0; it fits" in found.reason
        board = forecast(str(both), device="pi5-8gb")
        assert (board.recommended.engine, "measured" in board.reason) == ("llamacpp", False)
