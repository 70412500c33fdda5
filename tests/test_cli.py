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


COMMAND = (sys.executable, "-c", "from edgeqwen.cli import main; main()")


def run(*arguments, stdin=None, **environment):
    """A real process: (exit code, stdout, stderr). Without `stdin` it has none."""
    given = {"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin}
    done = subprocess.run(
        [*COMMAND, *map(str, arguments)],
        **given, capture_output=True, text=True, encoding="utf-8", cwd=environment.pop("cwd", None),
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
        (["convert", "nano", "--to", ""], 1, "gguf, onnx"),
        (["convert", "nano", "--exporter", ""], 1, "optimum"),
        (["completion", "tcsh"], 2, "bash"),
        (["run", "x" * 300, "hi"], 1, "name too long"),
        (["run", "~nobody-of-this-name/x", "hi"], 1, "home directory"),
        (["inspect", "~nobody-of-this-name/x"], 1, "home directory"),
        (["convert", "nano", "--out", "/proc/nothing/here"], 1, "/proc"),
        (["run", "nano", "hi", "--think", "--thinking-budget", "0"], 2, "turns thinking off"),
        (["run", "nano", "hi", "--no-think", "--thinking-budget", "9"], 2, "no thinking to limit"),
        (["run", "nano", "hi", "--gpu-layers", "-2"], 2, "gpu-layers"),
        (["run", "nano", "hi", "--logprobs", "2"], 2, "--json"),
        (["run", "nano", "hi", "--logprobs", "21", "--json"], 2, "logprobs"),
        (["run", "nano", "hi", "--tools", __file__], 2, "is not JSON"),
        (["inspect", "nano", "--verify"], 2, "checkpoint"),
        (["run", "nano", "hi", "--engine", "ort", "--type", "q4_k_m"], 1, "there are fp32, int8, int4"),
        (["run", "nano", "hi", "--engine", "vllm"], 1, "auto, llamacpp, ort"),
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
    _, out, _ = run("convert", "nano", "--type", "q8_0", "--out", tmp_path / "with blanks")
    assert f"run it: edgeqwen run '{tmp_path / 'with blanks'}' \"Hello\"" in out


def test_a_model_that_grows_is_told_with_what_makes_it_smaller(nano_artifact, tmp_path):
    for kind, told in (("bf16", True), ("q8_0", False)):
        (file,) = nano_artifact(kind).glob("*.gguf")
        code, out, _ = run("convert", file, "--to", "onnx", "--out", tmp_path / kind)
        assert code == 0
        assert ("fp32 has the source's values, in more bytes; in fewer: --type int8" in out) is told


def test_options_that_would_have_no_effect_are_refused(nano_artifact):
    folder = nano_artifact("q8_0")
    (file,) = folder.glob("*.gguf")
    for arguments, words in (
        (("run", folder, "hi", "--type", "q8_0"), "an artifact already"),
        (("run", file, "hi", "--type", "q8_0"), "a GGUF file already"),
        (("run", file, "hi", "--verify"), "plain GGUF file"),
        (("inspect", file, "--verify"), "GGUF file"),
    ):
        code, out, err = run(*arguments)
        assert (code, out) == (2, "")
        assert words in err
    greedy = ("hi", "--no-think", "--temperature", "0", "--max-tokens", "1")
    assert run("run", folder, *greedy, EDGEQWEN_RUN_TYPE="q8_0")[0] == 0  # a default for what is converted


def test_what_is_an_artifact_already_is_not_converted(nano_artifact, tmp_path):
    code, out, err = run("convert", nano_artifact("q8_0"), cwd=tmp_path)
    assert (code, out) == (1, "")
    assert "is an artifact already; run it" in err
    assert len(err.splitlines()) == 1


def redirected(redirection, *arguments, **environment):
    """A process whose streams a shell has redirected."""
    return subprocess.run(
        ["sh", "-c", f'exec "$@" {redirection}', "sh", *COMMAND, *map(str, arguments)],
        stdin=subprocess.DEVNULL, capture_output=True, timeout=240, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )  # fmt: skip


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize(("redirection", "words"), [(">/dev/full", "No space left"), (">&-", "output is closed")])
def test_an_output_that_takes_nothing_is_one_line(redirection, words):
    done = redirected(redirection, "inspect", "nano")
    assert done.returncode == 1
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith("error: ")
    assert words in line


def test_closed_input_and_closed_errors_do_no_harm():
    assert b"checkpoint, qwen3" in redirected("<&- 2>&-", "inspect", "nano").stdout
    assert redirected("<&- 2>&-", "inspect", "absent.gguf").returncode == 1


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser may read everything")
def test_a_folder_that_may_not_be_read_is_one_line(tmp_path):
    (folder := tmp_path / "closed").mkdir(mode=0)
    code, _, err = run("run", folder / "model.gguf", "hi")
    assert (code, len(err.splitlines())) == (1, 1)


def test_an_error_of_the_system_names_its_file(monkeypatch, capsys):
    def refused(**_):
        raise PermissionError(13, "Permission denied", "some\x1b[2J\nwhere")

    monkeypatch.setattr(cli.edgeqwen, "main", refused)
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 1
    assert capsys.readouterr().err == "error: some\\x1b[2J where: Permission denied\n"


def test_a_fault_of_the_program_is_not_hidden(monkeypatch):
    def broken(**_):
        raise RuntimeError("a fault")

    monkeypatch.setattr(cli.edgeqwen, "main", broken)
    with pytest.raises(RuntimeError, match="a fault"):
        cli.main()


def test_a_pipe_of_another_encoding_and_bad_bytes_end_no_answer(nano_artifact):
    arguments = ("run", nano_artifact("q8_0"), "-", "--no-think", "--temperature", "0", "--max-tokens", "40", "--json")
    done = subprocess.run(
        [*COMMAND, *map(str, arguments)], input=b"Spell the word \xff\x90\xe6.", capture_output=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}, timeout=240,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, b"")
    assert json.loads(done.stdout.decode("ascii"))["content"]


def test_output_that_an_encoding_lacks_is_marked(tmp_path):
    import shutil

    from edgeqwen.catalog import NANO

    shutil.copytree(NANO, tmp_path / "模型")
    code, out, err = run("inspect", tmp_path / "模型", PYTHONUTF8="0", PYTHONIOENCODING="cp1252")
    assert (code, err) == (0, "")
    assert "?? (checkpoint, qwen3)" in out


def on_a_terminal(*arguments, **environment):
    """(exit code, all that a terminal got)."""
    import pty

    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, *map(str, arguments)], stdin=theirs, stdout=theirs, stderr=theirs,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1", "TERM": "xterm", "NO_COLOR": "", **environment},
    )  # fmt: skip
    os.close(theirs)
    got = bytearray()
    try:
        while piece := os.read(ours, 65536):
            got += piece
    except OSError:  # Linux says so when the other end is closed
        pass
    os.close(ours)
    return process.wait(60), got.decode()


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_a_terminal_gets_styles_unless_it_wants_none(nano_artifact):
    assert "\x1b[31m" in on_a_terminal("inspect", "absent.gguf")[1]
    question = ("run", nano_artifact("q8_0"), "What is 2 + 2?", "--think", "--seed", "1")
    for arguments, environment in (
        (("inspect", "absent.gguf"), {"NO_COLOR": "1"}),
        (("inspect", "absent.gguf"), {"TERM": "dumb"}),
        (("demo",), {"NO_COLOR": "1"}),
        (question, {"TERM": "dumb"}),
    ):
        got = on_a_terminal(*arguments, **environment)[1]
        assert got
        assert "\x1b" not in got


def test_demo_prints_one_json_object():
    code, out, err = run("demo", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["conversion"]["type"] == "Q8_0"
    assert [answer["question"][:4] for answer in found["answers"]] == ["What"] * 3
    assert "579" in found["answers"][0]["content"]
    assert found["answers"][2]["tool_calls"][0]["name"] == "get_weather"


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


def test_a_prompt_and_piped_text_are_joined(nano_artifact, tmp_path):
    options = ("--no-think", "--temperature", "0", "--max-tokens", "1", "--json")

    def tokens(prompt, **streams):
        _, out, _ = run("run", nano_artifact("q8_0"), prompt, *options, **streams)
        return json.loads(out)["usage"]["prompt_tokens"]

    alone = tokens("Sum this up:")
    joined = tokens("Sum this up:", stdin="a letter\n")
    assert joined == tokens("-", stdin="Sum this up:\n\na letter\n") > alone
    assert tokens("Sum this up:", stdin=" \n") == alone
    (tmp_path / "letter").write_text("a letter\n")
    file = redirected(f"<'{tmp_path / 'letter'}'", "run", nano_artifact("q8_0"), "Sum this up:", *options)
    assert json.loads(file.stdout)["usage"]["prompt_tokens"] == joined


def test_nobody_waits_for_an_input_that_never_ends(nano_artifact):
    import socket

    ours, theirs = socket.socketpair()
    with ours, theirs:
        done = subprocess.run(
            [*COMMAND, "run", nano_artifact("q8_0"), "hi", "--no-think", "--max-tokens", "1", "--temperature", "0"],
            stdin=theirs.fileno(), capture_output=True, timeout=240, check=False,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
    assert done.returncode == 0
    assert done.stderr.startswith(b"cut by length: 1 tokens")


def test_thinking_goes_to_the_errors_of_a_pipe_where_it_is_asked_for(nano_artifact):
    question = ("run", nano_artifact("q8_0"), "--think", "--seed", "1", "--temperature", "0.01")
    code, out, err = run(*question, "--show-thinking", "--", "What is 123 + 456?")
    assert code == 0
    assert err.strip()
    assert (out, "") == run(*question, "What is 123 + 456?")[1:]


def test_run_says_which_engine_it_took_and_why(nano_artifact):
    _, out, err = run("run", nano_artifact("q8_0"), "hi", "--max-tokens", "2", "--verbose", "--json")
    data = json.loads(out)
    assert data["engine"] == "llamacpp"
    assert err.strip() == "; ".join(data["reasons"])
    assert "reads gguf" in err


def test_logprobs_are_in_the_json(nano_artifact):
    options = ("--no-think", "--temperature", "0", "--max-tokens", "3", "--logprobs", "2", "--json")
    answer = json.loads(run("run", nano_artifact("q8_0"), "hi", *options)[1])
    for token in answer["logprobs"]:
        assert len(token["top"]) == 2
        assert token["logprob"] == max(value for _, value in token["top"]) <= 0  # greedy


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_json_stopped_by_a_signal_prints_nothing(monkeypatch, capsys, name, code):
    import signal

    from scripted_model import model_saying

    calls = []

    def endless(_ids):
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), getattr(signal, name))
        return 100 + len(calls) % 50

    monkeypatch.setattr("edgeqwen.cli.run._load", lambda *_: model_saying(endless))
    monkeypatch.setattr("sys.argv", ["edgeqwen", "run", "nano", "hi", "--no-think", "--json"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == code
    assert capsys.readouterr().out == ""


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
    assert facts["parameters"] == 4_984_064  # the sum over the checkpoint's tensors
    assert "checkpoint, qwen3" in run("inspect", "nano")[1]
    assert "token_embd.weight" in run("inspect", folder, "--tensors")[1]


def test_inspect_prints_no_control_characters_of_a_name(tmp_path):
    import shutil

    from edgeqwen.catalog import NANO

    shutil.copytree(NANO, tmp_path / "a\x1b[2J\x9b")
    out = run("inspect", tmp_path / "a\x1b[2J\x9b")[1]
    assert "a\\x1b[2J\\x9b (checkpoint" in out


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
