"""What a terminal shows of an answer, Ctrl-C in the middle of one, and the conversation with its commands."""

import io
import os
import signal
import threading

import pytest
from scripted_model import QWEN25, THOUGHT, TOKENIZER, model_saying, script

from edgeqwen.cli.answer import Printer, Stopped, play
from edgeqwen.cli.conversation import Conversation
from edgeqwen.errors import EngineError
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


def show(deltas, **streams):
    printer = Printer(show_thinking=True, **streams)
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


@pytest.fixture
def talk(monkeypatch, capsys):
    """Type lines into a conversation; gives it back with what it printed."""

    def with_lines(model, lines, **settings):
        pending = iter(lines)

        def read(_prompt):
            line = next(pending, None)
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
