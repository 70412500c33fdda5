"""What edgeqwen does on a Raspberry Pi 5 and a Raspberry Pi 4, each emulated, installed from wheels alone.

Emulated seconds mean nothing, and are not looked at. Answers are held to the record that x86 is held to as well
(tests/test_identity.py): exact weights may part from it only at a step that it calls close.
"""

import hashlib
import json
import shutil
import signal
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from boards import ARM
from reference_answers import QUESTIONS, is_right, recorded

from edgeqwen import choice, device
from edgeqwen.choice import choose
from edgeqwen.outline import outline

EXACT = {"llamacpp": ("f32", "gguf"), "ort": ("fp32", "onnx")}
ROUNDED = {"llamacpp": ("q8_0", "q4_0"), "ort": ("int8", "int4")}
MODES = ("thinking", "tools")


def asked(*modes, every):
    """Places in QUESTIONS of greedy ones, so many prompts apart: emulated, an answer takes seconds."""
    chosen = [
        place
        for place, question in enumerate(QUESTIONS)
        if question.mode in modes and question.sampling == "greedy" and question.number % every == 0
    ]
    assert len(chosen) >= 3 * len(modes)
    return chosen


def checks(pi, *words):
    code, out, err = pi.edgeqwen("doctor", "--json", *words)
    told = json.loads(out)
    return code, told, {check["name"]: check for check in told["checks"]}, err


def test_doctor_names_the_board_and_finds_both_engines(pi):
    code, told, found, err = checks(pi)
    assert code == 0, err
    assert told["machine"]["board"] == pi.board.model
    assert told["machine"]["cpu"] == pi.board.known_as
    assert "aarch64" in found["system"]["found"]
    assert f"{pi.board.model}, {pi.board.known_as}" in found["processor"]["found"]
    has_dot_products = "asimddp" in pi.board.features
    assert ("dotprod" in found["processor"]["found"].replace("no dotprod", "")) == has_dot_products
    assert found["processor"]["status"] == ("ok" if has_dot_products else "warn")
    assert f"{pi.board.available_mb / 1024:.1f} GiB available" in found["memory"]["found"]
    assert found["llamacpp"]["status"] == found["ort"]["status"] == "ok", found


def test_the_library_for_its_processor_is_taken(pi):
    (engine,) = pi.told("engine", "list", "--json")["engines"]
    assert (engine["origin"], engine["used"], engine["fault"]) == ("wheel", True, None)
    assert engine["variant"] == pi.board.library
    assert pi.drive("maps", pi.nano("q8_0", "gguf")) == [f"libggml-cpu-{pi.board.library}.so"]


def test_nano_is_converted_there_to_the_bytes_of_x86(pi, nano_artifact):
    """Promised per architecture; that Q8_0 and the exact types are the same everywhere is seen here."""
    for kind, container in (("f32", "gguf"), ("q8_0", "gguf"), ("fp32", "onnx")):
        there, here = pi.nano(kind, container), nano_artifact(kind, container)
        assert digests(there) == digests(here), kind


def digests(folder):
    files = (path for path in folder.iterdir() if path.name not in {"manifest.json", "measured.json"})
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_plan_is_that_of_any_machine_with_its_memory(pi, monkeypatch):
    folder = pi.nano("int8", "gguf", "onnx")
    there = pi.drive("plan", folder)
    monkeypatch.setattr(device, "memory_available_bytes", lambda: pi.board.available_mb << 20)
    monkeypatch.setattr(device.platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(choice, "installed_engines", lambda: ("llamacpp", "ort"))
    here = choose(outline(folder))
    assert there["engine"] == here.engine == "llamacpp"
    assert there["threads"] == here.threads
    assert (there["context_length"], there["kv_type"]) == (here.context_length, here.kv_type)
    assert (there["need"]["repacked_bytes"] > 0) == ("asimddp" in pi.board.features), "ggml lays Q8_0 out anew for them"


def parting(ids, wanted):
    pairs = zip(ids, wanted, strict=False)
    return next((i for i, (one, other) in enumerate(pairs) if one != other), min(len(ids), len(wanted)))


@pytest.mark.parametrize("engine", EXACT)
def test_exact_weights_give_the_ids_of_x86(pi, engine, record_property):
    kind, container = EXACT[engine]
    places, parted = asked(*MODES, every=162), []
    told = pi.drive("answers", pi.nano(kind, container), engine, "f32", *map(str, places))
    for place, answer in zip(places, told, strict=True):
        wanted = recorded()[QUESTIONS[place]]
        if answer["ids"] == wanted.ids:
            assert answer["digest"] == wanted.seen, QUESTIONS[place]  # thinking, content, calls, counts
            continue
        at = parting(answer["ids"], wanted.ids)
        parted.append((str(QUESTIONS[place]), at, dict(map(tuple, wanted.close)).get(at)))
    record_property("parted", parted)
    assert all(margin is not None for _, _, margin in parted), parted
    assert len(parted) <= 1, parted


@pytest.mark.parametrize(("engine", "kind"), [(engine, kind) for engine, kinds in ROUNDED.items() for kind in kinds])
def test_rounded_weights_answer_as_x86(pi, engine, kind, nano_artifact, record_property):
    """Greedy and thinking; the sentences of the thinking may differ, what is answered not."""
    places = asked("thinking", every=108)
    told = pi.drive("answers", pi.nano(kind, EXACT[engine][1]), engine, "f16", *map(str, places))
    right = [
        is_right(QUESTIONS[place].prompt, as_answer(answer["seen"])) for place, answer in zip(places, told, strict=True)
    ]
    record_property("right", f"{sum(right)} of {len(right)}")
    assert len(right) - sum(right) <= 1, told
    assert all(answer["seen"][0] for answer in told), "nothing was thought"


def as_answer(seen):
    """As much of an answer as is_right looks at."""
    calls = [SimpleNamespace(name=name, arguments=text) for name, text, _ in seen[2]]
    return SimpleNamespace(content=seen[1], tool_calls=calls)


@pytest.mark.parametrize("engine", EXACT)
def test_it_chats_and_splits_the_thinking(pi, engine):
    kind, container = EXACT[engine]
    words = ["run", pi.nano(kind, container), "What is 123 + 456?", "--think", "--seed", "1", "--engine", engine]
    answer = pi.told(*words, "--context", "512", "--json")
    assert answer["thinking"]
    assert "579" in answer["content"]
    assert "think>" not in answer["thinking"] + answer["content"]


@pytest.fixture
def dotprod_alone(tmp_path):
    """An engine that has nothing but a library for a Pi 5."""
    wheel = next(iter(Path(ARM, "wheels").glob("edgeqwen_engine-*_aarch64.whl")))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    folder = tmp_path / "edgeqwen_engine/lib"
    data = json.loads((folder / "engine.json").read_bytes())
    kept = "armv8.2_2"
    for name in set(data["variants"]) - {kept}:
        (folder / f"libggml-cpu-{name}.so").unlink()
        del data["files"][f"libggml-cpu-{name}.so"]
    data["variants"] = {kept: data["variants"][kept]}
    (folder / "engine.json").write_text(json.dumps(data), "utf-8")
    return folder


def test_an_engine_for_another_processor_is_refused(pi, dotprod_alone):
    code, _, err = pi.edgeqwen("engine", "use", dotprod_alone)
    if pi.board.library == "armv8.2_2":
        assert code == 0, err
        assert pi.edgeqwen("engine", "use", "auto")[0] == 0
        return
    assert code == 1, err
    assert "holds nothing that the processor here (Cortex-A72) can run, only armv8.2_2" in err
    assert "needs asimddp asimdhp" in err


def test_a_library_that_was_compiled_for_another_processor_is_refused(pi, dotprod_alone):
    """As pip compiles it on a Pi 5, whose card is put into a Pi 4: constants of the one library say what it takes."""
    (dotprod_alone / "engine.json").unlink()
    (dotprod_alone / "libggml-cpu-armv8.2_2.so").rename(dotprod_alone / "libggml-cpu.so")
    model = pi.nano("q8_0", "gguf")
    code, out, err = pi.edgeqwen("run", model, "Hi", LLAMA_CPP_LIB_PATH=str(dotprod_alone))
    assert code not in (-signal.SIGILL, 128 + signal.SIGILL), "it was run"
    if pi.board.library == "armv8.2_2":
        assert "is built for another processor" not in err
        return
    assert code == 1, out + err
    assert "is built for another processor: it needs asimddp asimdhp, which Cortex-A72 lacks: pip install" in err


def test_there_is_no_compiler_and_nothing_came_as_source(pi):
    site = Path(ARM, "site")
    assert shutil.which("c++", path=str(Path(ARM, pi.board.name, "usr/bin"))) is None
    made = [path.read_text("utf-8") for path in site.glob("*.dist-info/WHEEL")]
    assert len(made) >= 30
    assert not [path for path in Path(ARM, "wheels").iterdir() if path.name.endswith((".tar.gz", ".zip"))]
    assert not list((site / "llama_cpp").rglob("*.so*")), "llama_cpp is Python alone"
