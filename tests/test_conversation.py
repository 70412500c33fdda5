"""What a terminal shows of an answer, Ctrl-C in the middle of one, and the conversation with its commands."""

import io
import json
import os
import signal
import threading

import pytest
from scripted_model import QWEN25, THOUGHT, TOKENIZER, model_saying, script

from edgeqwen.cli.answer import Printer, Stopped, play
from edgeqwen.cli.conversation import Conversation
from edgeqwen.cli.progress import Progress
from edgeqwen.cli.terminal import complain, escaped, json_text, note
from edgeqwen.errors import EngineError, InterruptedForwardError
from edgeqwen.types import Delta, Message, ToolCallDelta


class Terminal(io.StringIO):
    def isatty(self):
        return True


def ignore(_delta):
    pass


def test_deltas_come_through_unchanged():
    direct = [d for d in model_saying(THOUGHT).stream("?", seed=1) if not d.finish_reason]
    model = model_saying(THOUGHT)
    shown = []
    played = play(model, model.stream("?", seed=1), shown.append)
    assert played == shown
    assert [d for d in played if not d.finish_reason] == direct


def test_errors_come_through():
    def failing(ids):
        if len(ids) > 30:
            raise EngineError("broken")
        return TOKENIZER.encode("a")[0]

    model = model_saying(failing)
    with pytest.raises(EngineError, match="broken"):
        play(model, model.stream("?", thinking=False), ignore)
    assert model.backend.length(0) > 0


@pytest.mark.parametrize("where", ["while it is computed", "while it is shown"])
def test_ctrl_c_stops_the_answer_and_leaves_the_model_usable(where):
    text = "one two three four five six seven eight nine ten"
    words, calls = script(text), []

    def interrupt_at_the_fourth(_):
        calls.append(1)
        if len(calls) == 4:
            os.kill(os.getpid(), signal.SIGINT)

    def computing(ids):
        interrupt_at_the_fourth(ids)
        return words(ids)

    model = model_saying(computing if where == "while it is computed" else words)
    show = interrupt_at_the_fourth if where == "while it is shown" else ignore
    before = threading.active_count()
    with pytest.raises(Stopped) as caught:
        play(model, model.stream("?", thinking=False), show)
    said = "".join(d.content for d in caught.value.deltas)
    assert text.startswith(said)
    assert threading.active_count() == before
    assert model.chat("?", thinking=False).content == text


def test_an_error_while_showing_ends_the_thread():
    def broken(_delta):
        raise BrokenPipeError

    model = model_saying("a b c d e f g")
    before = threading.active_count()
    with pytest.raises(BrokenPipeError):
        play(model, model.stream("?", thinking=False), broken)
    assert model.chat("?", thinking=False).content == "a b c d e f g"
    assert threading.active_count() == before


@pytest.fixture(autouse=True)
def _capable_terminal(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")


def show(deltas, *, thinking=None, **streams):
    printer = Printer(show_thinking=thinking, **streams)
    for delta in deltas:
        printer.show(delta)
    printer.end()


def test_a_terminal_shows_thinking_dimmed_and_a_pipe_gets_the_answer_alone():
    deltas = [
        Delta(prompt_progress=(512, 900)),
        Delta(thinking="hm"),
        Delta(content="4"),
        Delta(tool_calls=(ToolCallDelta(0, "id", "add", '{"a": 2}'),)),
    ]
    out, err = Terminal(), Terminal()
    show(deltas, out=out, err=err)
    assert out.getvalue() == '4\n[tool call] add {"a": 2}\n'
    assert "512 of 900" in err.getvalue()
    assert "\x1b[2mhm\x1b[0m" in err.getvalue()
    out, err = io.StringIO(), io.StringIO()
    show(deltas, out=out, err=err)
    assert (out.getvalue(), err.getvalue()) == ('4\n[tool call] add {"a": 2}\n', "")
    out, err = io.StringIO(), io.StringIO()
    show(deltas, thinking=True, out=out, err=err)
    assert (out.getvalue(), err.getvalue()) == ('4\n[tool call] add {"a": 2}\n', "hm\n\n")
    out, err = Terminal(), Terminal()
    show(deltas, thinking=False, out=out, err=err)
    assert "hm" not in err.getvalue()


@pytest.mark.parametrize("variable", [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_a_terminal_that_wants_no_ansi_gets_none(variable, monkeypatch):
    monkeypatch.setenv(*variable)
    deltas = [Delta(prompt_progress=(512, 900)), Delta(thinking="hm"), Delta(content="4")]
    out, err = Terminal(), Terminal()
    show(deltas, out=out, err=err)
    assert (out.getvalue(), err.getvalue()) == ("4\n", "hm\n\n")
    monkeypatch.setattr("sys.stderr", err := Terminal())
    note("a note")
    complain("a fault")
    assert err.getvalue() == "a note\nerror: a fault\n"


HOSTILE = "\x1b]0;owned\x07\x9b2J\rX\x7f\n\tü"


def test_a_model_cannot_command_the_terminal_and_a_pipe_gets_its_very_words():
    deltas = [
        Delta(thinking=HOSTILE),
        Delta(content=HOSTILE),
        Delta(tool_calls=(ToolCallDelta(0, "id", "f\x1b", HOSTILE),)),
    ]
    out, err = Terminal(), Terminal()
    show(deltas, out=out, err=err)
    tame = "]0;owned2JX\n\tü"
    assert out.getvalue() == f"{tame}\n[tool call] f {tame}\n"
    assert err.getvalue() == f"\x1b[2m{tame}\x1b[0m\n\n"
    out = io.StringIO()
    show(deltas, out=out, err=io.StringIO())
    assert out.getvalue() == f"{HOSTILE}\n[tool call] f\x1b {HOSTILE}\n"


def test_names_are_printed_on_one_line_without_control_characters():
    assert escaped("Qwen3 é 模型\n\x1b[2J\x9b\u202e\ud800\U000e0001") == (
        "Qwen3 é 模型\\x0a\\x1b[2J\\x9b\\u202e\\ud800\\U000e0001"
    )


def test_json_is_the_same_data_without_raw_control_characters():
    data = {"text": HOSTILE + "\ud800 模"}
    assert json.loads(json_text(data)) == data
    assert not {c for c in json_text(data) if c != "\n" and not c.isprintable()}
    assert "模" in json_text(data)


def test_the_progress_of_a_prompt_is_wiped_where_the_answer_is_stopped():
    err = Terminal()
    show([Delta(prompt_progress=(512, 900))], out=Terminal(), err=err)
    assert err.getvalue().endswith("\r\x1b[K")


def test_a_stage_is_one_plain_line_where_no_bar_may_be_drawn(monkeypatch):
    monkeypatch.setattr("edgeqwen.cli.progress.PATIENCE_S", 0)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr("sys.stderr", err := Terminal())
    with Progress() as progress:
        for stage in ("loading a\x1b", "converting b"):
            progress(1, 2, stage)
            progress(2, 2, stage)
    assert err.getvalue() == "loading a\\x1b\nconverting b\n"


@pytest.fixture
def talk(monkeypatch, capsys):
    """Type lines into a conversation; gives it back with what it printed. A line may be called, then typed."""

    def with_lines(model, lines, **settings):
        pending = iter(lines)

        def read(_prompt):
            line = next(pending, None)
            if callable(line) and not isinstance(line, type):
                line = line()
            if isinstance(line, type):
                raise line
            if line is None:
                raise EOFError
            return line

        monkeypatch.setattr("builtins.input", read)
        conversation = Conversation(model, {"seed": 1, **settings}, None, show=True)
        conversation.talk()
        return conversation, capsys.readouterr()

    return with_lines


def test_turns_are_kept_and_the_cache_is_prepared_between_them(talk):
    model = model_saying(THOUGHT)
    conversation, printed = talk(model, ["Why?", "And?", "/bye", "never read"])
    assert printed.out == "It is 4.\n\n" * 2
    assert [m.role for m in conversation._history] == ["user", "assistant"] * 2
    assert conversation._history[1] == Message("assistant", "It is 4.\n", "Two and two.")
    assert model.backend.length(0) == model.prepare(conversation._messages())


def test_switches_reach_the_model(talk):
    model = model_saying("It is 4.")
    conversation, printed = talk(
        model, ["/no_think", "2+2?", "/budget 30", "/budget x", "/budget", "/think", "/nonsense"]
    )
    assert printed.out.startswith("It is 4.\n")
    assert conversation._settings["thinking"] is True
    assert conversation._settings["thinking_budget"] is None
    assert "needs a number" in printed.err
    assert "no command /nonsense" in printed.err


def test_system_and_clear_start_anew(talk):
    conversation, _ = talk(model_saying("ok"), ["/no_think", "a", "/system Be brief.", "b"])
    assert conversation._messages()[0] == Message("system", "Be brief.")
    assert [m.content for m in conversation._history] == ["b", "ok"]
    conversation, _ = talk(model_saying("ok"), ["/no_think", "a", "/clear"])
    assert conversation._messages() == []


def test_many_lines_and_a_half_typed_line(talk):
    conversation, _ = talk(model_saying("ok"), ["/no_think", '"""one', 'two"""', KeyboardInterrupt, '"""three"""'])
    assert [m.content for m in conversation._history if m.role == "user"] == ["one\ntwo", "three"]
    conversation, _ = talk(model_saying("ok"), ["/no_think", '"""one', "two"])  # and Ctrl-D
    assert [m.content for m in conversation._history if m.role == "user"] == ["one\ntwo"]


def test_a_stopped_answer_is_kept_as_far_as_it_came(talk):
    words = script("one two three four five six")
    calls = []

    def slow(ids):
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return words(ids)

    conversation, _ = talk(model_saying(slow), ["/no_think", "count"])
    assert "one two three four five six".startswith(conversation._history[-1].content)
    assert conversation._history[-1].role == "assistant"


def test_a_full_context_says_what_helps(talk):
    conversation, printed = talk(model_saying("ok", context_length=64), ["/no_think", "word " * 80])
    assert "/clear starts anew" in printed.err
    assert conversation._history == []


def test_think_on_a_model_that_cannot(talk):
    _, printed = talk(model_saying("ok", template=QWEN25), ["/think", "hi"])
    assert "no thinking mode" in printed.err
    assert printed.out == "ok\n\n"  # and the new line of Ctrl-D


class SlowPreparer:
    """Stands in for Model.prepare: it ends when it is interrupted, or allowed to."""

    def __init__(self, model, monkeypatch):
        self.running, self.end, self.outcome = threading.Event(), threading.Event(), []
        self._interrupted = False
        self._interrupt = model.interrupt
        monkeypatch.setattr(model, "prepare", self.prepare)
        monkeypatch.setattr(model, "interrupt", self.interrupt)

    def prepare(self, _messages):
        self.running.set()
        assert self.end.wait(60)
        self.outcome.append("interrupted" if self._interrupted else "done")
        if self._interrupted:
            raise InterruptedForwardError("the step was interrupted")

    def interrupt(self):
        self._interrupted = True
        self.end.set()
        self._interrupt()

    def typed(self, line):
        """A line that is typed while it runs."""

        def type_it():
            assert self.running.wait(60)
            return line

        return type_it


@pytest.mark.parametrize("line", ["/clear", "/system Be brief.", "/bye", None])
def test_preparing_is_interrupted_by_what_makes_it_useless(line, talk, monkeypatch):
    model = model_saying("ok")
    slow = SlowPreparer(model, monkeypatch)
    talk(model, ["/no_think", "a", slow.typed(line)])
    assert slow.outcome == ["interrupted"]


def test_a_question_waits_for_the_work_it_needs(talk, monkeypatch):
    model = model_saying("ok")
    slow = SlowPreparer(model, monkeypatch)

    def ask():
        assert slow.running.wait(60)
        threading.Timer(0.05, slow.end.set).start()
        return "b"

    conversation, _ = talk(model, ["/no_think", "a", ask])
    assert slow.outcome[0] == "done"
    assert [m.content for m in conversation._history] == ["a", "ok", "b", "ok"]


def test_ctrl_c_while_a_question_waits_drops_the_question_alone(talk, monkeypatch):
    model = model_saying("ok")
    slow = SlowPreparer(model, monkeypatch)
    wait, waits = Conversation._wait, []

    def interrupted_wait(conversation):
        waits.append(slow.running.is_set())
        if len(waits) == 2:
            threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
        wait(conversation)

    def later():
        assert slow.outcome == ["interrupted"]
        return "c"

    monkeypatch.setattr(Conversation, "_wait", interrupted_wait)
    conversation, _ = talk(model, ["/no_think", "a", slow.typed("dropped"), later])
    assert waits == [False, True, True]
    assert [m.content for m in conversation._history] == ["a", "ok", "c", "ok"]


def test_a_question_without_an_answer_leaves_an_equal_earlier_one(talk):
    words, failing = script("ok"), []

    def fail_on_demand(ids):
        if failing:
            raise EngineError("broken")
        return words(ids)

    def again():
        failing.append(1)
        return "same"

    conversation, printed = talk(model_saying(fail_on_demand), ["/no_think", "same", again])
    assert [m.content for m in conversation._history] == ["same", "ok"]
    assert "error: broken" in printed.err


def test_the_later_word_on_thinking_counts(talk):
    settings = talk(model_saying(THOUGHT), ["/budget 0", "/think"])[0]._settings
    assert (settings["thinking"], settings["thinking_budget"]) == (True, None)
    settings = talk(model_saying(THOUGHT), ["/budget 30", "/think"])[0]._settings
    assert settings["thinking_budget"] == 30
    conversation, printed = talk(model_saying("ok"), ["/think", "/budget 0", "hi"])
    assert [m.thinking for m in conversation._history] == [None, None]
    assert printed.out.startswith("ok")
    _, printed = talk(model_saying("ok"), ["/budget " + "9" * 5000])
    assert "needs a number" in printed.err


def test_a_cut_answer_says_so_in_a_pipe_too(talk):
    _, printed = talk(model_saying("one two three four"), ["/no_think", "count"], max_tokens=2)
    assert printed.err.startswith("cut by length: 2 tokens")
    assert talk(model_saying("one"), ["/no_think", "count"])[1].err == ""
    _, printed = talk(model_saying("<think>\none two"), ["/think", "count"])
    assert printed.err.splitlines()[-1].startswith("ended within its thinking, without an answer: ")
