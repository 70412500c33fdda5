"""Every kind of damaged or hostile checkpoint: one line that names the file and the figures, and no file left open."""

from __future__ import annotations

import gc
import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from converters.checkpoint import open_checkpoint
from edgeqwen.errors import CheckpointError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
NORM = "model.norm.weight"
SMALL = {"hidden": 64, "intermediate": 128, "layers": 1, "head_dim": 32}


@pytest.fixture(scope="module")
def sound(make_checkpoint, tmp_path_factory):
    """One folder of each kind that the cases start from."""
    root = tmp_path_factory.mktemp("sound")
    return {
        "single": make_checkpoint(root / "single", **SMALL),
        "sharded": make_checkpoint(root / "sharded", **SMALL, shards=2),
        "duplicate": make_checkpoint(root / "duplicate", **SMALL, duplicate=True),
        "untied": make_checkpoint(root / "untied", **SMALL, tied=False),
    }


def split(folder, file=WEIGHTS):
    raw = (folder / file).read_bytes()
    end = 8 + int.from_bytes(raw[:8], "little")
    return json.loads(raw[8:end]), raw[end:]


def join(folder, header, data, file=WEIGHTS):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    (folder / file).write_bytes(len(raw).to_bytes(8, "little") + raw + data)


def header(change, file=WEIGHTS):
    """A mutation: `change` edits the parsed header in place."""

    def mutate(folder):
        data, tail = split(folder, file)
        change(data)
        join(folder, data, tail, file)

    return mutate


def entry(**values):
    """A mutation: set keys of one tensor's header entry."""
    return header(lambda data: data[NORM].update(values))


def raw_header(text: bytes):
    return lambda folder: join(folder, text, b"")


def edit(file, change):
    """A mutation: `change` edits a JSON file in place."""

    def mutate(folder):
        data = json.loads((folder / file).read_text())
        change(data)
        (folder / file).write_text(json.dumps(data))

    return mutate


def overwrite(file, raw: bytes):
    return lambda folder: (folder / file).write_bytes(raw)


def remove(file):
    return lambda folder: (folder / file).unlink()


def resize(change):
    return lambda folder: os.truncate(folder / WEIGHTS, (folder / WEIGHTS).stat().st_size + change)


def then(*mutations):
    def mutate(folder):
        for mutation in mutations:
            mutation(folder)

    return mutate


def only(*files):
    """A mutation: leave nothing but these files (created empty where new)."""

    def mutate(folder):
        for path in folder.iterdir():
            if path.name not in files:
                path.unlink()
        for file in files:
            (folder / file).touch()

    return mutate


def move_tensor(amount):
    """A mutation: shift the last tensor's data, without a change of its size."""
    return header(lambda data: data[NORM].update(data_offsets=[x + amount for x in data[NORM]["data_offsets"]]))


def grow_norm(data):
    begin, end = data[NORM]["data_offsets"]
    data[NORM] = {"dtype": "BF16", "shape": [end - begin], "data_offsets": [begin, 2 * end - begin]}


def flip_head_bit(folder):
    data, tail = split(folder)
    position = data["lm_head.weight"]["data_offsets"][1] - 1
    join(folder, data, tail[:position] + bytes([tail[position] ^ 1]) + tail[position + 1 :])


def head_as_f16(data):
    data["lm_head.weight"]["dtype"] = "F16"


def outside_link(folder):
    target = folder.parent / "elsewhere.safetensors"
    shutil.move(folder / WEIGHTS, target)
    (folder / WEIGHTS).symlink_to(target)


def card_link(folder):
    (folder / "README.md").symlink_to("/etc/passwd")


def loop_link(folder):
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to(WEIGHTS)


def named_pipe(folder):
    (folder / WEIGHTS).unlink()
    os.mkfifo(folder / WEIGHTS)


def folder_in_place(folder):
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).mkdir()


def tokenizer(change):
    return edit("tokenizer.json", change)


def drop_byte(data):
    del data["model"]["vocab"]["Ā"]  # stands for byte 0


def shift_ids(data):
    data["model"]["vocab"] = {token: number + 1 for token, number in data["model"]["vocab"].items()}


def weight_map(change):
    return edit(INDEX, lambda data: change(data["weight_map"]))


def extra_tensor(folder):
    data, tail = split(folder)
    offsets = [len(tail), len(tail) + 4]
    data["model.layers.0.self_attn.q_proj.bias"] = {"dtype": "F32", "shape": [1], "data_offsets": offsets}
    join(folder, data, tail + bytes(4))


def in_both_shards(folder):
    first, second = sorted(path.name for path in folder.glob("*.safetensors"))
    data, tail = split(folder, second)
    name = next(name for name in split(folder, first)[0] if name != "__metadata__")
    data[name] = {"dtype": "F32", "shape": [1], "data_offsets": [len(tail), len(tail) + 4]}
    join(folder, data, tail + bytes(4), second)


DEEP = b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}"
MANY = {f"t{n}": {"dtype": "F32", "shape": [1], "data_offsets": [4 * n, 4 * n + 4]} for n in range(5001)}
HUGE = [2**63, 2**63]

# name: (which sound folder, mutation, words that the message must hold)
CASES = {
    # the folder
    "missing": ("single", shutil.rmtree, ["no such folder"]),
    "empty": ("single", only(), ["config.json is missing", "[]"]),
    "pickles": ("single", only("config.json", "pytorch_model.bin"), ["pytorch_model.bin", "safetensors"]),
    "adapter": ("single", then(remove("config.json"), overwrite("adapter_config.json", b"{}")), ["LoRA", "merge"]),
    "no-config": ("single", remove("config.json"), ["config.json is missing", WEIGHTS]),
    "no-weights": ("single", remove(WEIGHTS), ["neither model.safetensors nor", INDEX]),
    "no-tokenizer": (
        "single",
        then(remove("tokenizer.json"), overwrite("vocab.json", b"{}")),
        ["tokenizer.json is missing", "vocab.json", "save_pretrained"],
    ),
    "no-tokenizer-config": ("single", remove("tokenizer_config.json"), ["tokenizer_config.json", "missing"]),
    "shards-without-index": ("sharded", remove(INDEX), ["neither", "model-00001-of-00002.safetensors"]),
    # what may be opened
    "link-leads-out": ("single", outside_link, [WEIGHTS, "out of the folder", "elsewhere"]),
    "card-leads-out": ("single", card_link, ["README.md", "out of the folder"]),
    "link-loop": ("single", loop_link, [WEIGHTS, "cannot be opened"]),
    "pipe": ("single", named_pipe, [WEIGHTS, "not a regular file"]),
    "folder-as-file": ("single", folder_in_place, [WEIGHTS, "not a regular file"]),
    # the header of a safetensors file
    "seven-bytes": ("single", overwrite(WEIGHTS, bytes(7)), ["7 bytes"]),
    "length-2^63": ("single", overwrite(WEIGHTS, b"\xff" * 8 + b"{}"), ["18,446,744,073,709,551,615", "4,194,304"]),
    "length-over-cap": ("single", overwrite(WEIGHTS, (4 << 20 | 1).to_bytes(8, "little")), ["4,194,305", "4,194,304"]),
    "length-over-file": ("single", overwrite(WEIGHTS, (100).to_bytes(8, "little") + b"{}"), ["100 bytes", "has 10"]),
    "not-an-object": ("single", raw_header(b"[1]"), ["not with an object"]),
    "not-utf8": ("single", raw_header(b'{"\xff":1}'), ["not valid JSON", "utf-8"]),
    "broken-json": ("single", raw_header(b'{"a":'), ["not valid JSON"]),
    "deep-json": ("single", raw_header(DEEP), ["nested too deeply"]),
    "key-twice": ("single", raw_header(b'{"a":1,"b":2,"a":3}'), ["'a'", "twice"]),
    "nan-in-json": ("single", raw_header(b'{"a":NaN}'), ["NaN"]),
    "long-integer": ("single", raw_header(b'{"a":' + b"9" * 5000 + b"}"), ["not valid JSON", "5000 digits"]),
    "too-many": ("single", lambda folder: join(folder, MANY, bytes(4 * 5001)), ["5,001 tensors", "5,000"]),
    "metadata-number": ("single", header(lambda data: data.update(__metadata__={"format": 1})), ["__metadata__"]),
    "entry-not-object": ("single", header(lambda data: data.update({NORM: []})), [NORM, "found []"]),
    "entry-extra-key": ("single", entry(strides=[1]), [NORM, "strides"]),
    "name-too-long": ("single", header(lambda data: data.update({"n" * 300: 1})), ["300", "200"]),
    "type-f64": ("single", entry(dtype="F64"), [NORM, "'F64'", "BF16, F16 and F32"]),
    "type-f8": ("single", entry(dtype="F8_E4M3"), [NORM, "'F8_E4M3'", "BF16"]),
    "type-list": ("single", entry(dtype=["BF16"]), [NORM, "['BF16']"]),
    "dimension-negative": ("single", entry(shape=[-64]), [NORM, "[-64]"]),
    "dimension-bool": ("single", entry(shape=[True]), [NORM, "[True]"]),
    "dimension-float": ("single", entry(shape=[64.0]), [NORM, "[64.0]"]),
    "dimension-zero": ("single", entry(shape=[0], data_offsets=[0, 0]), [NORM, "[0]"]),
    "dimensions-overflow": ("single", entry(shape=HUGE), [NORM, str(2**63), str(2 * 2**126)]),
    "dimensions-five": ("single", entry(shape=[64, 1, 1, 1, 1]), [NORM, "1 to 4"]),
    "offsets-backwards": ("single", entry(data_offsets=[8, 4]), [NORM, "[8, 4]"]),
    "offsets-negative": ("single", entry(data_offsets=[-4, 4]), [NORM, "[-4, 4]"]),
    "offsets-three": ("single", entry(data_offsets=[0, 1, 2]), [NORM, "[0, 1, 2]"]),
    "offsets-other-size": ("single", entry(shape=[63]), [NORM, "takes 126 bytes", "128"]),
    "offsets-outside": ("single", header(grow_norm), [NORM, "ends at", "the file has"]),
    "overlap": ("single", move_tensor(-2), [NORM, "overlaps"]),
    "hole": ("single", move_tensor(2), [NORM, "hole"]),
    "trailing-bytes": ("single", resize(3), ["3 bytes after the last tensor"]),
    "cut-off": ("single", resize(-1), [NORM, "is the download complete"]),
    # the index
    "index-not-object": ("sharded", edit(INDEX, lambda data: data.update(weight_map=[])), [INDEX, "weight_map is []"]),
    "index-path": ("sharded", weight_map(lambda m: m.update({NORM: "../x.safetensors"})), [INDEX, "../x.safetensors"]),
    "index-absolute": ("sharded", weight_map(lambda m: m.update({NORM: "/x.safetensors"})), [INDEX, "/x.safetensors"]),
    "index-not-text": ("sharded", weight_map(lambda m: m.update({NORM: 1})), [INDEX, NORM, "in 1"]),
    "index-lacks-tensor": ("sharded", weight_map(lambda m: m.pop(NORM)), ["disagree on 1", NORM, "None"]),
    "index-adds-tensor": (
        "sharded",
        weight_map(lambda m: m.update(extra=m[NORM])),
        ["disagree on 1", "'extra'", "files None"],
    ),
    "index-names-missing-file": (
        "sharded",
        weight_map(lambda m: m.update(extra="model-00003-of-00003.safetensors")),
        ["model-00003-of-00003.safetensors", "missing"],
    ),
    "index-names-300-files": (
        "sharded",
        weight_map(lambda m: m.update({f"t{n}": f"model-{n}.safetensors" for n in range(298)})),
        ["names 300 files", "256"],
    ),
    "index-wrong-file": (
        "sharded",
        weight_map(lambda m: m.update({NORM: "model-00001-of-00002.safetensors"})),
        ["disagree on 1", NORM, "00001", "00002"],
    ),
    "shard-missing": ("sharded", remove("model-00002-of-00002.safetensors"), ["00002", "missing", "download"]),
    "shard-left-over": (
        "sharded",
        overwrite("model-00003-of-00003.safetensors", b""),
        ["model-00003-of-00003.safetensors", "not named"],
    ),
    "single-and-shards": ("sharded", overwrite(WEIGHTS, b""), [WEIGHTS, "two sets of weights"]),
    "in-two-shards": ("sharded", in_both_shards, ["00002", "also in model-00001"]),
    # the set of tensors
    "tensor-missing": (
        "single",
        edit("config.json", lambda c: c.update(num_hidden_layers=2)),
        ["11 tensors are missing", "model.layers.1.input_layernorm.weight"],
    ),
    "tensor-unknown": (
        "untied",
        header(lambda data: data.update({"lm_head.bias": data.pop("lm_head.weight")})),
        ["1 tensors are missing", "lm_head.weight"],
    ),
    "tensor-extra": ("single", extra_tensor, ["1 tensors are not known", "model.layers.0.self_attn.q_proj.bias"]),
    "heads-differ": (
        "untied",
        edit("config.json", lambda c: c.update(tie_word_embeddings=True, num_attention_heads=8)),
        ["model.layers.0.self_attn", "config.json asks for"],
    ),
    "shape-differs": (
        "single",
        edit("config.json", lambda c: c.update(intermediate_size=256)),
        ["mlp.down_proj.weight", "[64, 128]", "[64, 256]"],
    ),
    "head-differs": ("duplicate", flip_head_bit, ["lm_head.weight", "differs", "tie_word_embeddings to false"]),
    "head-of-other-type": ("duplicate", header(head_as_f16), ["lm_head.weight (F16)", "(BF16)"]),
    "head-missing": (
        "single",
        edit("config.json", lambda c: c.update(tie_word_embeddings=False)),
        ["1 tensors are missing", "lm_head.weight"],
    ),
    # config.json as a file; its values are in test_model_config.py
    "config-broken": ("single", overwrite("config.json", b"{"), ["config.json", "not valid JSON"]),
    "config-list": ("single", overwrite("config.json", b"[]"), ["config.json", "expected a JSON object"]),
    "config-large": ("single", overwrite("config.json", b" " * (4 << 20 | 1)), ["config.json", "4,194,305 bytes"]),
    "generation-config-broken": (
        "single",
        overwrite("generation_config.json", b"nul"),
        ["generation_config.json", "not valid JSON"],
    ),
    "end-id-outside": (
        "single",
        edit("generation_config.json", lambda c: c.update(eos_token_id=[1, 99999])),
        ["generation_config.json", "eos_token_id", "99999", "4159"],
    ),
    # the tokenizer
    "tokenizer-broken": ("single", overwrite("tokenizer.json", b"{}x"), ["tokenizer.json", "not valid JSON"]),
    "tokenizer-unigram": ("single", tokenizer(lambda t: t["model"].update(type="Unigram")), ["BPE", "Unigram"]),
    "tokenizer-nfkc": ("single", tokenizer(lambda t: t.update(normalizer={"type": "NFKC"})), ["normalizer", "NFC"]),
    "tokenizer-split": (
        "single",
        tokenizer(lambda t: t["pre_tokenizer"]["pretokenizers"][0].update(pattern={"Regex": r"\w+"})),
        ["pre_tokenizer", r"\\w+"],
    ),
    "tokenizer-prefix-space": (
        "single",
        tokenizer(lambda t: t["pre_tokenizer"]["pretokenizers"][1].update(add_prefix_space=True)),
        ["pre_tokenizer"],
    ),
    "tokenizer-decoder": ("single", tokenizer(lambda t: t.update(decoder={"type": "Fuse"})), ["decoder", "Fuse"]),
    "tokenizer-adds-tokens": (
        "single",
        tokenizer(lambda t: t.update(post_processor={"type": "TemplateProcessing"})),
        ["post_processor", "TemplateProcessing"],
    ),
    "tokenizer-fallback": ("single", tokenizer(lambda t: t["model"].update(byte_fallback=True)), ["byte_fallback"]),
    "tokenizer-lacks-byte": ("single", tokenizer(drop_byte), ["lacks 1 of the 256 byte tokens"]),
    "tokenizer-ids-shifted": ("single", tokenizer(shift_ids), ["ids", "not 0 to"]),
    "tokenizer-merge-of-three": (
        "single",
        tokenizer(lambda t: t["model"].update(merges=[["a", "b", "c"]])),
        ["merges", "['a', 'b', 'c']"],
    ),
    "tokenizer-merge-number": ("single", tokenizer(lambda t: t["model"].update(merges=[["a", 1]])), ["merges"]),
    "tokenizer-merge-unknown": (
        "single",
        tokenizer(lambda t: t["model"]["merges"].append(["Ā", "Ā"])),
        ["merges", "'ĀĀ'", "not in vocab"],
    ),
    "tokenizer-strips": (
        "single",
        tokenizer(lambda t: t["added_tokens"][0].update(lstrip=True)),
        ["<|endoftext|>", "lstrip"],
    ),
    "tokenizer-id-twice": (
        "single",
        tokenizer(lambda t: t["added_tokens"][1].update(id=t["added_tokens"][0]["id"])),
        ["twice", "<|im_start|>"],
    ),
    "tokenizer-id-huge": ("single", tokenizer(lambda t: t["added_tokens"][0].update(id=2**40)), ["added token"]),
    "tokenizer-over-rows": (
        "single",
        then(
            tokenizer(lambda t: t["added_tokens"][-1].update(id=4160)),
            edit("tokenizer_config.json", lambda c: c.pop("added_tokens_decoder")),
        ),
        ["tokenizer.json", "4160", "0 to 4159"],
    ),
    "tokenizer-tables-differ": (
        "single",
        edit("tokenizer_config.json", lambda c: c.update(added_tokens_decoder={"3": {"content": "<x>"}})),
        ["tokenizer_config.json", "'<x>'", "'3'"],
    ),
    "template-number": (
        "single",
        edit("tokenizer_config.json", lambda c: c.update(chat_template=7)),
        ["chat_template is 7"],
    ),
    "template-not-utf8": ("single", overwrite("chat_template.jinja", b"\xff"), ["chat_template.jinja", "not UTF-8"]),
}

NEEDS_POSIX = {"link-leads-out", "card-leads-out", "link-loop", "pipe", "folder-as-file"}


def open_files() -> int:
    table = Path("/proc/self/fd")
    return len(list(table.iterdir())) if table.exists() else 0


@pytest.mark.parametrize("case", CASES)
def test_refused_in_one_line(sound, tmp_path, case):
    if case in NEEDS_POSIX and sys.platform == "win32":
        pytest.skip("links and pipes of POSIX")
    base, mutate, words = CASES[case]
    folder = tmp_path / "checkpoint"
    shutil.copytree(sound[base], folder)
    mutate(folder)
    before = open_files()
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder)
    text = str(caught.value)
    del caught  # its traceback holds views of the file
    gc.collect()
    assert open_files() <= before
    assert str(folder) in text
    assert "\n" not in text
    assert len(text) < 1000
    assert [word for word in words if word not in text] == [], text


@pytest.mark.parametrize(
    ("file", "words"), [("model.gguf", "a GGUF file"), (WEIGHTS, "is a file; expected the folder")]
)
def test_a_file_is_not_a_checkpoint(tmp_path, file, words):
    (tmp_path / file).touch()
    with pytest.raises(CheckpointError, match=words):
        open_checkpoint(tmp_path / file)


def test_a_gguf_file_that_is_not_there_is_called_a_file(tmp_path):
    with pytest.raises(CheckpointError, match=r"no such file$"):
        open_checkpoint(tmp_path / "absent.gguf")
