"""Names -> models on disk: what each kind of name becomes, and the whole way from a hub id to an answer."""

import json
import shutil
import threading

import pytest
from loopback_hub import MODEL, serving

from edgeqwen import ArtifactError, DownloadError, RequestError, TemplateError, catalog, load
from edgeqwen.artifact import open_artifact
from edgeqwen.catalog import NANO, artifact_name, convert, find, locate, locate_converted, model_name, type_name
from edgeqwen.folders import cache_folder
from edgeqwen.inspection import inspect
from edgeqwen.outline import outline

CHECKPOINT_FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
)


@pytest.fixture
def hub(monkeypatch):
    with serving({name: (NANO / name).read_bytes() for name in CHECKPOINT_FILES}) as served:
        monkeypatch.setenv("HF_ENDPOINT", served.endpoint)
        yield served


def test_a_hub_id_is_converted_once_and_then_needs_no_network(hub, monkeypatch):
    with load(MODEL, type="q8_0") as model:
        assert model.card.name == "Qwen3-Tiny"
        assert "Paris" in model.chat("What is the capital of France?", thinking=False, temperature=0.0).content
    asked = len(hub.seen)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    folder = locate(MODEL, type="int8", offline=True)
    assert folder.parent == cache_folder()
    assert open_artifact(folder, verify="full").manifest.formats["gguf"].type == "Q8_0"
    assert inspect(str(folder)).name == "Qwen3-Tiny"
    assert len(hub.seen) == asked
    with pytest.raises(DownloadError, match="offline"):
        locate("Qwen/Other", offline=True)


def test_where_only_onnx_runtime_is_installed_names_become_graphs(hub, monkeypatch):
    monkeypatch.setattr(catalog, "installed_engines", lambda: ("ort",))
    for name in ("nano", MODEL):
        folder = locate(name)
        assert folder.name.endswith("-int4-onnx")
        assert {kind: one.type for kind, one in open_artifact(folder).manifest.formats.items()} == {"onnx": "int4"}
        assert locate(name) == folder
    monkeypatch.setattr(catalog, "installed_engines", tuple)
    assert catalog.formats_of("auto") == ("gguf",)


def test_a_name_becomes_what_the_engine_reads():
    assert catalog.formats_of("ort") == ("onnx",)
    assert catalog.formats_of("llamacpp") == ("gguf",)
    with load("nano", type="int8", engine="ort") as model:
        assert model.card.plan.engine == "ort"
        assert "Paris" in model.chat("What is the capital of France?", thinking=False, temperature=0.0).content
    with pytest.raises(RequestError, match="engine 'vllm' is not one of"):
        locate("nano", engine="vllm")


def test_inspect_of_a_hub_id_looks_and_makes_nothing(hub):
    with pytest.raises(RequestError, match="edgeqwen run Qwen"):
        inspect(MODEL)
    assert not hub.seen
    locate(MODEL, type="q8_0")
    asked = len(hub.seen)
    assert inspect(MODEL).types[0][0] == "Q8_0"
    assert len(hub.seen) == asked
    assert len(list(cache_folder().iterdir())) == 1


def test_what_is_in_the_cache_is_this_model_in_the_type_that_run_takes(nano_artifact):
    """Qwen3-0.6B-Base begins with the name of another one."""
    cache = cache_folder()
    shutil.copytree(nano_artifact("q8_0"), cache / "qwen--qwen3-0.6b-base-q4_k_m")
    with pytest.raises(RequestError, match=r"Qwen/Qwen3-0\.6B is not in the cache"):
        locate_converted("Qwen/Qwen3-0.6B")
    for name in ("int4_fast-onnx", "q8_0", "q4_k_m"):  # the last one is the default
        shutil.copytree(nano_artifact("q8_0"), cache / f"qwen--qwen3-0.6b-{name}")
        wanted = "q4_k_m" if name == "q4_k_m" else "int4_fast-onnx"
        assert locate_converted("Qwen/Qwen3-0.6B").name == f"qwen--qwen3-0.6b-{wanted}"
    assert locate_converted("Qwen/Qwen3-0.6B-Base").name == "qwen--qwen3-0.6b-base-q4_k_m"


def test_to_look_for_nano_makes_nothing():
    with pytest.raises(RequestError, match="nano is not in the cache: edgeqwen run nano"):
        locate_converted("nano")
    assert not cache_folder().exists()
    made = locate("nano")
    assert locate_converted("nano") == made


@pytest.mark.parametrize(
    "spoil", [lambda path: path.write_bytes(b"GGUF"), lambda path: path.unlink()], ids=["cut", "gone"]
)
def test_what_is_damaged_in_the_cache_is_made_anew_once_it_is_deleted(spoil):
    folder = locate("nano")
    spoil(next(folder.glob("*.gguf")))
    with pytest.raises(ArtifactError, match=f"delete {folder}, and the next run makes it anew"):
        find(folder)
    moved = shutil.copytree(folder, cache_folder().parent / "elsewhere")
    with pytest.raises(ArtifactError, match="convert or copy it again"):
        find(moved)
    shutil.rmtree(folder)
    assert find(locate("nano")).name == "nano"


def test_a_foreign_template_of_a_hub_id_needs_trust_once(hub):
    settings = json.loads(hub.files["tokenizer_config.json"])
    settings["chat_template"] = "{# mine #}" + settings["chat_template"]
    hub.files["tokenizer_config.json"] = json.dumps(settings).encode()
    with pytest.raises(TemplateError, match="--trust-template"):
        locate(MODEL)
    folder = locate(MODEL, trust_template=True)
    assert find(folder).template.name.startswith("sandboxed")


def test_two_first_uses_at_once_both_work():
    found = []
    threads = [threading.Thread(target=lambda: found.append(locate("nano", type="q8_0"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 4
    assert len(set(found)) == 1
    assert open_artifact(found[0], verify="full")


def test_a_cache_that_cannot_be_made_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EDGEQWEN_HOME", str(tmp_path / "file"))
    with pytest.raises(ArtifactError, match="EDGEQWEN_HOME"):
        locate("nano")


@pytest.fixture
def edited(nano_artifact, tmp_path):
    """A copy of nano in a type and a format whose manifest was changed by a function."""

    def make(kind, format, change):
        folder = tmp_path / "copy"
        shutil.copytree(nano_artifact(kind, format), folder)
        manifest = json.loads((folder / "manifest.json").read_text())
        change(manifest)
        (folder / "manifest.json").write_text(json.dumps(manifest))
        return folder

    return make


@pytest.mark.parametrize(("kind", "format"), [("q8_0", "gguf"), ("int4", "onnx"), ("fp32", "onnx")])
@pytest.mark.parametrize(
    "field",
    [
        "num_hidden_layers",
        "max_position_embeddings",
        "hidden_size",
        "intermediate_size",
        "num_attention_heads",
        "vocab_size",
    ],
)
def test_a_manifest_of_another_shape_is_damage(edited, kind, format, field):
    folder = edited(kind, format, lambda manifest: manifest["shape"].update({field: 2 * manifest["shape"][field]}))
    with pytest.raises(ArtifactError, match="shape"):
        find(folder, format=format)
    if format == "onnx":
        with pytest.raises(ArtifactError, match="shape"):
            outline(folder)


def test_a_format_that_no_engine_reads_is_passed_over(edited):
    def beside(manifest):
        manifest["formats"]["tflite"] = manifest["formats"]["gguf"]

    assert set(outline(edited("q8_0", "gguf", beside)).weights) == {"gguf"}


def test_an_artifact_that_no_engine_reads_is_refused(edited):
    folder = edited("q8_0", "gguf", lambda manifest: manifest.update(formats={"tflite": manifest["formats"]["gguf"]}))
    with pytest.raises(ArtifactError, match="tflite, and no engine reads that"):
        outline(folder)


def test_inspect_of_a_checkpoint_says_what_it_will_need():
    found = inspect("nano")
    assert [line.context for line in found.memory] == [2048, 4096]
    assert found.parameters == 4_984_064
    assert dict(found.notes)["as q4_k_m"] == "3 MB of weights; the memory below is for it"


@pytest.mark.parametrize("bad", [None, 5, "", b"x"])
def test_names_and_types_are_texts(bad):
    with pytest.raises(RequestError):
        locate(bad)
    if bad is not None:
        with pytest.raises(RequestError):
            locate("nano", type=bad)


def test_convert_of_a_hub_id_equals_that_of_the_folder(hub, tmp_path):
    del hub
    remote = convert(MODEL, tmp_path / "remote", type="q4_0")
    folder = tmp_path / "Qwen3-Tiny"
    folder.mkdir()
    for name in CHECKPOINT_FILES:
        (folder / name).write_bytes((NANO / name).read_bytes())
    local = convert(str(folder), tmp_path / "local", type="q4_0")
    assert remote.sha256 == local.sha256


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("a/b/c", "no model"),
        ("absent.gguf", "no model"),
        ("../x", "no model"),
        ("org/x.gguf", "no model"),
    ],
)
def test_names_that_are_none(name, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RequestError, match=words):
        locate(name)


def test_folders_are_named_after_model_and_type(tmp_path):
    assert artifact_name(model_name("Qwen/Qwen3-0.6B"), type_name("int4")) == "qwen3-0.6b-q4_k_m"
    assert artifact_name(model_name("nano"), type_name("Q8_0")) == "nano-q8_0"
    (tmp_path / "My-Model").mkdir()
    assert model_name(str(tmp_path / "My-Model")) == model_name(f"{tmp_path}/My-Model/") == "My-Model"


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    assert cache_folder() == tmp_path / "edgeqwen-home"
    monkeypatch.delenv("EDGEQWEN_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("sys.platform", "linux")
    assert cache_folder() == tmp_path / "edgeqwen"


def test_a_plain_file_knows_what_the_artifact_knows(nano_artifact):
    folder = nano_artifact("q8_0")
    (file,) = folder.glob("*.gguf")
    one, other = find(folder), find(file)
    assert (one.shape, one.end_ids, one.sampling, one.weights) == (
        other.shape,
        other.end_ids,
        other.sampling,
        other.weights,
    )
    assert one.template == other.template
    assert one.tokenizer.added == other.tokenizer.added
    text = "Plain 文字 and 123"
    assert one.tokenizer.encode(text) == other.tokenizer.encode(text)


def test_an_unknown_template_needs_trust_twice(tmp_path):
    folder = tmp_path / "custom"
    folder.mkdir()
    for name in CHECKPOINT_FILES:
        (folder / name).write_bytes((NANO / name).read_bytes())
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["chat_template"] = "{# mine #}" + settings["chat_template"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(TemplateError, match="--trust-template"):
        convert(str(folder), tmp_path / "out", type="q8_0")
    assert not (tmp_path / "out").exists()
    report = convert(str(folder), tmp_path / "out", type="q8_0", trust_template=True)
    assert "sandboxed" in inspect(str(report.path)).template
    assert find(report.path).template.name.startswith("sandboxed")
    (file,) = report.path.glob("*.gguf")
    with pytest.raises(TemplateError, match="--trust-template"):
        find(file)
    with load(file, trust_template=True) as model:
        assert "Paris" in model.chat("What is the capital of France?", thinking=False, temperature=0.0).content
