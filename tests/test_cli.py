"""The command line as a user meets it: output, exit codes, errors, JSON; the engine is real where a model answers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from edgeqwen import cli
from edgeqwen.cli import COMMANDS, edgeqwen

ROOT = Path(__file__).resolve().parent.parent


def run(*arguments, stdin=None, **environment):
    """A real process: (exit code, stdout, stderr)."""
    done = subprocess.run(
        [sys.executable, "-c", "from edgeqwen.cli import main; main()", *map(str, arguments)],
        input=stdin, capture_output=True, text=True, encoding="utf-8", cwd=environment.pop("cwd", None),
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1", **environment}, timeout=240, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def test_help_of_every_command_names_its_options():
    for command in COMMANDS:
        result = CliRunner().invoke(edgeqwen, [command, "--help"])
        assert result.exit_code == 0
        assert command in result.output
    assert all(command in CliRunner().invoke(edgeqwen, ["--help"]).output for command in COMMANDS)


def test_help_and_import_load_no_engine_and_no_numpy():
    code = (
        "import sys, edgeqwen, edgeqwen.cli\n"
        "try: edgeqwen.cli.edgeqwen.main(['--help'], standalone_mode=False)\n"
        "except SystemExit: pass\n"
        "loaded = {'llama_cpp', 'numpy', 'tokenizers', 'rich', 'huggingface_hub', 'jinja2'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=ROOT)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["nonsense"], 2, "there are convert"),
        (["run"], 2, "MODEL"),
        (["run", "nano", "hi", "--top-k", "x"], 2, "top-k"),
        (["run", "nano", "hi", "--thinking-budget", "-1"], 2, "thinking-budget"),
        (["run", "./absent", "hi"], 1, "no model './absent'"),
        (["run", "Qwen/Qwen3-0.6B", "hi", "--offline"], 1, "offline"),
        (["inspect", "absent.gguf"], 1, "absent.gguf"),
        (["convert", "nano", "--type", "q9_z"], 1, "q4_k_m"),
        (["convert", "absent/folder/x"], 1, "absent/folder/x"),
        (["completion", "tcsh"], 2, "bash"),
    ],
)
def test_errors_are_one_line_that_says_what_would_work(arguments, code, words, tmp_path):
    (folder := tmp_path / "here").mkdir()
    found, out, err = run(*arguments, cwd=folder)
    assert (found, out) == (code, "")
    assert words in err
    assert "Traceback" not in err
    assert len([line for line in err.splitlines() if line.lower().startswith("error")]) == 1
    assert list(folder.iterdir()) == []


def test_a_folder_that_is_no_artifact_is_told_apart(tmp_path):
    (tmp_path / "empty").mkdir()
    assert "no manifest.json" in run("run", tmp_path / "empty", "hi")[2]
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "config.json").write_text("{}")
    assert "edgeqwen convert" in run("run", tmp_path / "checkpoint", "hi")[2]
    (tmp_path / "text.gguf").write_text("not a GGUF file")
    code, _, err = run("run", tmp_path / "text.gguf", "hi")
    assert (code, "text.gguf" in err) == (1, True)


def test_completion_scripts():
    for shell, word in (("bash", "complete"), ("zsh", "compdef"), ("fish", "complete")):
        result = CliRunner().invoke(edgeqwen, ["completion", shell])
        assert word in result.output
        assert "_EDGEQWEN_COMPLETE" in result.output


def test_ctrl_c_exits_with_130(monkeypatch, capsys):
    def interrupted(**_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.edgeqwen, "main", interrupted)
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 130
    assert capsys.readouterr().out == ""


def test_convert_reports_and_runs(tmp_path):
    code, out, err = run("convert", "nano", "--type", "int8", cwd=tmp_path)
    assert (code, err) == (0, "")
    assert "nano-q8_0: Q8_0" in out
    assert "edgeqwen run nano-q8_0" in out
    code, out, _ = run("convert", "nano", "--type", "q8_0", "--out", tmp_path / "again", "--json")
    report = json.loads(out)
    assert (code, report["type"], report["path"]) == (0, "Q8_0", str(tmp_path / "again"))
    first, second = (sorted(p.name for p in (tmp_path / n).glob("*.gguf")) for n in ("nano-q8_0", "again"))
    assert first == second  # the names carry the hashes


def test_run_answers_on_stdout_alone(nano_artifact):
    code, out, err = run("run", nano_artifact("q8_0"), "What is the capital of France?", "--no-think", "--seed", "1")
    assert (code, err) == (0, "")
    assert "Paris" in out


def test_run_reads_standard_input_and_prints_json(nano_artifact):
    arguments = ("run", nano_artifact("q8_0"), "-", "--think", "--temperature", "0.01", "--seed", "1", "--json")
    code, out, _ = run(*arguments, stdin="What is 123 + 456?")
    answer = json.loads(out)
    assert code == 0
    assert "579" in answer["content"]
    assert answer["thinking"]
    assert answer["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] > answer["usage"]["thinking_tokens"] > 0
    assert run("run", nano_artifact("q8_0"), stdin="")[0] == 2


def test_run_takes_tools(nano_artifact, tmp_path):
    tool = {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
    (tmp_path / "tools.json").write_text(json.dumps([tool]))
    (tmp_path / "bad.json").write_text("{")
    arguments = ("run", nano_artifact("q8_0"), "What is the weather in Paris?", "--no-think", "--temperature", "0")
    _, out, _ = run(*arguments, "--tools", tmp_path / "tools.json", "--json")
    (call,) = json.loads(out)["tool_calls"]
    assert (call["name"], json.loads(call["arguments"])) == ("get_weather", {"city": "Paris"})
    assert run(*arguments, "--tools", tmp_path / "bad.json")[0] == 2


def test_a_plain_gguf_file_answers_like_the_artifact(nano_artifact):
    folder = nano_artifact("q8_0")
    (file,) = folder.glob("*.gguf")
    question = ("Spell the word garden.", "--no-think", "--temperature", "0")
    assert run("run", file, *question)[1] == run("run", folder, *question)[1] != "\n"


def test_a_prompt_that_is_too_long_names_both_counts(nano_artifact):
    code, out, err = run("run", nano_artifact("q8_0"), "word " * 200, "--context", "128")
    assert (code, out) == (1, "")
    assert "128" in err


def test_inspect_shows_sizes_and_memory(nano_artifact):
    folder = nano_artifact("q4_k_m")
    code, out, _ = run("inspect", folder, "--verify")
    assert code == 0
    for words in ("artifact, qwen3", "known, rendered natively", "memory at 2048", "memory at 4096", "all checked"):
        assert words in out
    facts = json.loads(run("inspect", folder, "--json")[1])
    assert facts["parameters"] == 4_986_112  # of the model card
    assert "checkpoint, qwen3" in run("inspect", "nano")[1]
    assert "token_embd.weight" in run("inspect", folder, "--tensors")[1]


def test_a_damaged_artifact_is_found(nano_artifact, tmp_path):
    import shutil

    folder = tmp_path / "copy"
    shutil.copytree(nano_artifact("q8_0"), folder)
    (file,) = folder.glob("*.gguf")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert run("inspect", folder)[0] == 0  # the quick look sees sizes and headers
    code, _, err = run("run", folder, "hi", "--verify")
    assert code == 1
    assert file.name in err
    file.write_bytes(data[:-10])
    assert run("run", folder, "hi")[0] == 1
