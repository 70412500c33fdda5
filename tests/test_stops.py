"""Stop strings against a naive reading of their rule, however the text is cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from text_data import cuts, examples

from edgeqwen.errors import RequestError
from edgeqwen.stops import StopStrings


def naive(text, stops):
    """The rule, read literally: the first end at which a stop string is complete; the longest one there."""
    for end in range(1, len(text) + 1):
        done = [stop for stop in stops if text[:end].endswith(stop)]
        if done:
            stop = max(done, key=len)
            return text[: end - len(stop)], stop
    return text, None


def run(pieces, stops):
    machine = StopStrings(stops)
    shown = "".join([*map(machine.push, pieces), machine.flush()])
    return shown, machine.hit


TEXTS = st.text("ab\n", max_size=12) | st.text("Ené💥", max_size=8)
STOPS = st.lists(st.text("ab\n", min_size=1, max_size=4) | st.text("Ené💥", min_size=1, max_size=3), max_size=4)


@given(TEXTS, STOPS)
@examples(600)
def test_equals_the_rule_however_it_is_cut(text, stops):
    wanted = naive(text, stops)
    for pieces in cuts(text):
        assert run(pieces, stops) == wanted


@given(TEXTS, STOPS, st.data())
@examples(300)
def test_what_is_shown_is_certain_and_as_much_as_can_be(text, stops, data):
    """Nothing shown is taken back by any continuation, and what is held back could still become a stop string."""
    machine = StopStrings(stops)
    shown = ""
    for end, char in enumerate(text, 1):
        shown += machine.push(char)
        more = data.draw(st.text("abEn", max_size=3))
        assert naive(text[:end] + more, stops)[0].startswith(shown)
        if machine.hit is not None:
            break
        held = text[len(shown) : end]
        assert not held or any(stop.startswith(held) for stop in stops)


@pytest.mark.parametrize(
    ("text", "stops", "wanted"),
    [
        ("Hello###rest", ["###"], ("Hello", "###")),
        ("Hello##", ["###"], ("Hello##", None)),
        ("abc", ["abc", "b"], ("a", "b")),  # the one that is complete first
        ("xabc", ["bc", "abc", "c"], ("x", "abc")),  # the longest at the same end
        ("aaab", ["aab"], ("a", "aab")),
        ("one\n\ntwo", ["\n\n"], ("one", "\n\n")),
        ("stop", ["stop"], ("", "stop")),
        ("", ["a"], ("", None)),
        ("anything", [], ("anything", None)),
    ],
)
def test_cases(text, stops, wanted):
    for pieces in cuts(text):
        assert run(pieces, stops) == wanted


def test_nothing_comes_after_a_hit():
    machine = StopStrings(["b"])
    assert [machine.push(char) for char in "abca"] == ["a", "", "", ""]
    assert (machine.flush(), machine.hit) == ("", "b")


@pytest.mark.parametrize("stops", ["abc", ["a"] * 17, [""], ["a" * 257], [5], [None], 5, {"a"}])
def test_bounds(stops):
    with pytest.raises(RequestError, match="stop"):
        StopStrings(stops)


def test_limits_are_inside_the_bounds():
    assert run(["x" * 300], ["x" * 256, *"abcdefghijklmno"]) == ("", "x" * 256)
