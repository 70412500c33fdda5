"""The same words out of every engine: held to what the reference answered to nano's held-out prompts.

Exact artifacts (F32 and fp32, a 32-bit cache) give the reference's ids, greedy and seeded. They may part from them only
at a step that the reference recorded as close: where its own margin is below the tolerance of 32-bit arithmetic.
Rounded artifacts are held to the answers that the reference got right. Every eighth prompt is asked here; all of them
in the environment of `make reference`.
"""

import os
from contextlib import contextmanager

import pytest
from reference_answers import (
    CONTEXT,
    MODES,
    QUESTIONS,
    SAMPLINGS,
    STEP_ROWS,
    Question,
    ask,
    digest,
    is_right,
    language_of,
    recorded,
    seen,
)

from edgeqwen import load
from edgeqwen.artifact import open_artifact
from edgeqwen.backends.llamacpp import LlamaCppBackend, LlamaCppSettings
from edgeqwen.backends.ort import OrtBackend, OrtSettings

# A slice is too small for shares: one answer of it may be another in any case.
EVERY = 1 if os.environ.get("EDGEQWEN_ALL_PROMPTS") else 8  # of the prompts, so many apart
EXACT = {"llamacpp": ("f32", "gguf"), "ort": ("fp32", "onnx")}
PARTED_MAX = 0.01  # of the answers: steps that are close are rare
SHARES = {
    ("q8_0", "gguf"): 0.98, ("int8", "onnx"): 0.98,
    ("q4_0", "gguf"): 0.93, ("q4_k_m", "gguf"): 0.93, ("int4", "onnx"): 0.93, ("int4_fast", "onnx"): 0.93,
}  # fmt: skip


@contextmanager
def opened(artifact, format, *, kv_type="f32"):
    """The backend of one format of an artifact, with room for all rows of an answer in one step."""
    found = open_artifact(artifact)
    if format == "gguf":
        settings = LlamaCppSettings(CONTEXT, threads=1, kv_type=kv_type, step_rows=STEP_ROWS)
        backend = LlamaCppBackend(found.file("gguf"), settings)
    else:
        settings = OrtSettings(CONTEXT, threads=1, step_rows=STEP_ROWS)
        backend = OrtBackend(found.file("onnx"), found.manifest.shape, settings)
    try:
        yield backend
    finally:
        backend.close()


def asked(mode, sampling):
    """The questions of one cell of the grid."""
    numbers = [q.number for q in QUESTIONS if q.mode == mode and q.sampling == sampling]
    return [Question(number, mode, sampling) for number in numbers[::EVERY]]


def parting(ids, wanted):
    """Where two answers part; None where they are the same."""
    if ids == wanted:
        return None
    pairs = zip(ids, wanted, strict=False)
    return next((i for i, (one, other) in enumerate(pairs) if one != other), min(len(ids), len(wanted)))


@pytest.fixture(scope="module", params=EXACT)
def exact(request, nano_artifact):
    """A backend with exact weights, and the language."""
    artifact = nano_artifact(*EXACT[request.param])
    with opened(artifact, EXACT[request.param][1]) as backend:
        yield backend, language_of(artifact, EXACT[request.param][1])


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.timeout(900)
def test_exact_weights_give_the_ids_of_the_reference(exact, mode, sampling, record_property):
    backend, language = exact
    parted = []
    questions = asked(mode, sampling)
    for question in questions:
        wanted = recorded()[question]
        answer, whole = ask(backend, language, question, wanted.ids, watch=False)
        at = parting(answer.ids, wanted.ids)
        if at is None:
            assert answer.forced == wanted.forced, question
            assert digest(whole) == wanted.seen, question
            continue
        close = dict(map(tuple, wanted.close))
        parted.append((str(question), at, close.get(at)))
    record_property("parted", parted)
    assert all(margin is not None for _, _, margin in parted), parted
    assert len(parted) <= max(1, PARTED_MAX * len(questions)), parted


@pytest.mark.parametrize("engine", EXACT)
def test_whole_and_streamed_answers_are_those_of_the_reference(nano_artifact, engine):
    """Through the public API, step by step, as users get them."""
    with load(nano_artifact(*EXACT[engine]), threads=1, context_length=CONTEXT, kv_type="f32", engine=engine) as model:
        compared = 0
        for question in QUESTIONS[:: 18 * len(MODES) * len(SAMPLINGS) + 1]:
            wanted = recorded()[question]
            if wanted.close:
                continue
            compared += 1
            options = {**question.options, "tools": question.tools}
            whole = model.chat(question.messages, **options)
            assert digest(whole) == wanted.seen, question
            deltas = list(model.stream(question.messages, **options))
            assert "".join(delta.thinking for delta in deltas) == whole.thinking, question
            assert "".join(delta.content for delta in deltas) == whole.content, question
            assert deltas[-1].finish_reason == whole.finish_reason, question
    assert compared > 10


@pytest.fixture(scope="module")
def right(nano_artifact):
    """What the reference answered right when it thought, greedily: question -> what a user sees but the counts."""
    artifact = nano_artifact("f32")
    language, answers = language_of(artifact), {}
    questions = asked("thinking", "greedy")
    with opened(artifact, "gguf") as backend:
        for question in questions:
            wanted = recorded()[question]
            answer, whole = ask(backend, language, question, wanted.ids, watch=False)
            if digest(whole) == wanted.seen and is_right(question.prompt, whole):
                answers[question] = (answer.ids, shown(whole))
    assert len(answers) > 0.9 * len(questions)
    return answers


def shown(answer):
    """The content, the calls and the reason to stop: what an answer must have in common to be the same."""
    return seen(answer)[1:4]


def answers_of(artifact, format, right, **settings):
    language = language_of(artifact, format)
    with opened(artifact, format, **settings) as backend:
        return [ask(backend, language, question, ids, watch=False)[1] for question, (ids, _) in right.items()]


@pytest.mark.parametrize(("type", "format"), SHARES, ids=" ".join)
@pytest.mark.timeout(900)
def test_rounded_weights_answer_as_the_reference(nano_artifact, right, type, format, record_property):
    answers = answers_of(nano_artifact(type, format), format, right, kv_type="f16")
    same = [shown(answer) == wanted for answer, (_, wanted) in zip(answers, right.values(), strict=True)]
    record_property("same", f"{sum(same)} of {len(same)}")
    assert len(same) - sum(same) <= max(1, (1 - SHARES[type, format]) * len(same))


@pytest.mark.parametrize("type", ["int4", "int8"])
@pytest.mark.timeout(900)
def test_one_grid_in_two_containers_agrees_with_itself(nano_artifact, right, type, record_property):
    folder = nano_artifact(type, "gguf", "onnx")
    one, other = ([shown(answer) for answer in answers_of(folder, container, right)] for container in ("gguf", "onnx"))
    same = sum(a == b for a, b in zip(one, other, strict=True))
    record_property("same", f"{same} of {len(right)}")
    assert len(right) - same <= max(1, 0.01 * len(right))
