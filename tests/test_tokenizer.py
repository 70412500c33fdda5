"""Ids equal the tokenizers library's; text never becomes an added token; decoding is the same however it is cut."""

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from text_data import corpus, cuts, examples, gguf_metadata, library, tokenizer, tokenizer_json

from edgeqwen.errors import ArtifactError, RequestError
from edgeqwen.segments import Special
from edgeqwen.tokenizer import MAX_TEXT_BYTES, Tokenizer

NAMES = ("nano", "qwen3")
SCRIPTS = (
    (0x20, 0x7E), (0xA0, 0x24F), (0x300, 0x36F), (0x370, 0x52F), (0x590, 0x6FF), (0x900, 0xDFF), (0xE00, 0xFFF),
    (0x1100, 0x11FF), (0x1E00, 0x20CF), (0x2E80, 0x30FF), (0x4E00, 0x4FFF), (0xAC00, 0xADFF), (0xF900, 0xFFFD),
    (0x1F300, 0x1F9FF), (0x10000, 0x10FFF), (0x9, 0xD), (0x20, 0x20), (0x30, 0x39),
)  # fmt: skip


def random_text(rng, length):
    return "".join(chr(rng.randint(*rng.choice(SCRIPTS))) for _ in range(length))


@pytest.mark.parametrize("name", NAMES)
def test_ids_of_the_corpus_equal_the_library(name):
    ours, theirs = tokenizer(name), library(name)
    rng = random.Random(1)
    lines = corpus()
    assert len(lines) > 150
    joined = ["\n".join(lines), *("".join(rng.sample(lines, 3)) for _ in range(300))]
    for text in (*lines, *joined):
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("name", NAMES)
def test_ids_of_random_unicode_equal_the_library(name):
    rng = random.Random(2)
    texts = [random_text(rng, rng.randint(1, 40)) for _ in range(5000)]
    found = library(name).encode_batch(texts, add_special_tokens=False)
    for text, theirs in zip(texts, found, strict=True):
        assert tokenizer(name).encode(text) == theirs.ids, text


def hostile_texts(rng, added, count):
    pieces = [
        *added,
        "<|",
        "|>",
        "<",
        ">",
        "|",
        "im_start",
        "im_end",
        "think",
        "/",
        "tool_call",
        "\n",
        " ",
        "é",
        "中",
        "💥",
    ]
    pieces += [token[:cut] for token in added for cut in (1, 2, 5, -1)]
    for _ in range(count):
        yield "".join(
            rng.choice(pieces) if rng.random() < 0.8 else random_text(rng, 2) for _ in range(rng.randint(1, 8))
        )


def test_text_never_yields_an_added_token():
    ours = tokenizer("nano")
    first = min(ours.added.values())
    hits = 0
    for text in hostile_texts(random.Random(3), list(ours.added), 100_000):
        hits += any(token in text for token in ours.added)
        assert max(ours.encode(text)) < first, text
    assert hits > 40_000  # the texts do spell control tokens


def test_text_never_yields_an_added_token_of_the_full_vocabulary():
    ours = tokenizer("qwen3")
    for text in hostile_texts(random.Random(4), list(ours.added), 5_000):
        assert max(ours.encode(text)) < ours.added["<|endoftext|>"]
        assert ours.decoder().push(ours.encode(text)) == library("qwen3").normalizer.normalize_str(text)


@pytest.mark.parametrize("name", NAMES)
def test_segments_equal_the_library_on_the_joined_text(name):
    ours, theirs = tokenizer(name), library(name)
    rng = random.Random(5)
    for _ in range(400):
        parts = [
            Special(rng.choice(list(ours.added))) if rng.random() < 0.4 else rng.choice(corpus())[: rng.randint(0, 20)]
            for _ in range(rng.randint(0, 8))
        ]
        joined = "".join(part.text if isinstance(part, Special) else part for part in parts)
        assert ours.encode_segments(parts) == theirs.encode(joined, add_special_tokens=False).ids


def test_control_token_that_the_vocabulary_lacks_is_text():
    ours = tokenizer("nano")
    parts = ["a", Special("<tool_nothing>"), "b", Special("<|im_end|>")]
    assert ours.encode_segments(parts) == [*ours.encode("a<tool_nothing>b"), ours.added["<|im_end|>"]]


def test_the_added_tokens_are_qwen3s():
    ours = tokenizer("qwen3")
    assert (len(ours.added), ours.vocab_size) == (26, 151669)
    assert (ours.id("<|im_end|>"), ours.id("<think>"), ours.id("</think>")) == (151645, 151667, 151668)
    assert ours.id("nothing") is None
    shown = {"<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>"}
    assert {token for token, number in ours.added.items() if number not in ours.control} == shown
    assert tokenizer("nano").added.keys() == ours.added.keys()


@pytest.mark.parametrize("name", NAMES)
def test_gguf_gives_the_same_tokenizer(name):
    one, other = tokenizer(name), Tokenizer.from_gguf(gguf_metadata(name))
    assert dict(one.added) == dict(other.added)
    assert (one.control, one.vocab_size) == (other.control, other.vocab_size)
    assert all(one.token_bytes(i) == other.token_bytes(i) for i in range(one.vocab_size))
    assert all(one.encode(line) == other.encode(line) for line in corpus())


def test_merges_may_be_texts():
    root = json.loads(tokenizer_json("nano"))
    root["model"]["merges"] = [" ".join(pair) for pair in root["model"]["merges"]]
    older = Tokenizer.from_json(json.dumps(root).encode())
    assert all(older.encode(line) == tokenizer("nano").encode(line) for line in corpus())


def test_vocabulary_may_come_in_any_order():
    root = json.loads(tokenizer_json("nano"))
    items = list(root["model"]["vocab"].items())
    random.Random(6).shuffle(items)
    root["model"]["vocab"] = dict(items)
    root["added_tokens"].reverse()
    shuffled = Tokenizer.from_json(json.dumps(root).encode())
    assert shuffled.encode("Hello, world") == tokenizer("nano").encode("Hello, world")
    assert shuffled.added == tokenizer("nano").added


@pytest.mark.parametrize("name", NAMES)
def test_decoding_equals_the_library(name):
    ours, theirs = tokenizer(name), library(name)
    shown = [number for number in range(ours.vocab_size) if number not in ours.control]
    rng = random.Random(7)
    broken = 0
    for _ in range(2000):
        ids = rng.choices(shown, k=rng.randint(1, 12))
        decoder = ours.decoder()
        text = decoder.push(ids) + decoder.flush()
        broken += "\ufffd" in text
        assert text == theirs.decode(ids, skip_special_tokens=False)
    assert broken > 100


@pytest.mark.parametrize("name", NAMES)
def test_every_line_comes_back(name):
    for line in corpus():
        decoder = tokenizer(name).decoder()
        text = decoder.push(tokenizer(name).encode(line)) + decoder.flush()
        assert text == library(name).normalizer.normalize_str(line)


def decoded(ours, pieces):
    decoder = ours.decoder()
    return "".join([*(decoder.push(piece) for piece in pieces), decoder.flush()])


@given(st.lists(st.integers(0, 5000), max_size=9))
@examples(300)
def test_decoding_is_the_same_however_it_is_cut(ids):
    ours = tokenizer("nano")  # 4,096 ids: the rest is padding, which gives no text
    whole = decoded(ours, [ids])
    assert whole == b"".join(ours.token_bytes(i) for i in ids if i not in ours.control).decode("utf-8", "replace")
    assert all(decoded(ours, pieces) == whole for pieces in cuts(ids))


@pytest.mark.parametrize("text", ["💥", "中", "é", "न", "a💥"])
def test_unfinished_character_gives_one_replacement(text):
    ours = tokenizer("nano")
    bytes_of = {ours.token_bytes(i): i for i in range(ours.vocab_size)}
    ids = [bytes_of[bytes([byte])] for byte in text.encode()]
    for end in range(len(text.encode()) - 1, len(text.encode()) - len(text[-1].encode()), -1):
        decoder = ours.decoder()
        shown = "".join(decoder.push([number]) for number in ids[:end])
        assert shown == text[:-1]
        assert decoder.flush() == "\ufffd"
        assert decoder.flush() == ""


def test_control_tokens_are_silent_and_tool_tags_are_text():
    ours = tokenizer("nano")
    ids = [ours.added[token] for token in ("<|im_end|>", "<tool_call>", "<|fim_pad|>", "</think>", "<|endoftext|>")]
    assert ours.decoder().push(ids) == "<tool_call></think>"
    assert ours.token_bytes(ours.added["<|im_end|>"]) == b"<|im_end|>"
    assert ours.token_bytes(ours.vocab_size) == ours.token_bytes(-1) == b""


@pytest.mark.parametrize("text", ["\ud800", "ok \udfff", "\udc80\ud83d"])
def test_lone_surrogates_are_refused(text):
    for call in (tokenizer().encode, lambda bad: tokenizer().encode_segments([Special("<|im_start|>"), bad])):
        with pytest.raises(RequestError, match="lone surrogate"):
            call(text)


def test_giant_texts_are_refused():
    text = "a" * (MAX_TEXT_BYTES // 2)
    with pytest.raises(RequestError, match="at most"):
        tokenizer().encode(text * 2 + "a")
    with pytest.raises(RequestError, match="at most"):
        tokenizer().encode_segments([text, Special("<|im_end|>"), text, "a"])


def changed(path, value):
    root = json.loads(tokenizer_json("nano"))
    place = root
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return json.dumps(root).encode()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("normalizer",), None),
        (("normalizer",), {"type": "NFKC"}),
        (("pre_tokenizer", "pretokenizers", 0, "pattern"), {"Regex": r"\s+"}),
        (("pre_tokenizer", "pretokenizers", 0, "behavior"), "Removed"),
        (("pre_tokenizer", "pretokenizers", 1, "add_prefix_space"), True),
        (("pre_tokenizer", "pretokenizers"), []),
        (("pre_tokenizer",), None),
        (("decoder",), {"type": "WordPiece"}),
        (("model", "type"), "WordPiece"),
        (("model", "dropout"), 0.1),
        (("model", "unk_token"), "<unk>"),
        (("model", "continuing_subword_prefix"), "##"),
        (("model", "byte_fallback"), True),
        (("model", "ignore_merges"), True),
        (("model", "vocab", "Ā"), 99999),
        (("model", "vocab", "Ā"), "x"),
        (("model", "vocab"), []),
        (("model", "vocab"), {"a": 0}),
        (("model", "merges"), [["a"]]),
        (("model", "merges"), [["no-such", "token"]]),
        (("model", "merges"), 5),
        (("model", "merges"), [["i", "n"], ["Ġ", "t"]]),  # most of the vocabulary cannot be reached
        (("added_tokens", 3, "lstrip"), True),
        (("added_tokens", 3, "normalized"), True),
        (("added_tokens", 3, "id"), 7),
        (("added_tokens", 3, "content"), "<|im_start|>"),
        (("added_tokens", 3, "content"), "a"),
        (("added_tokens", 3, "content"), ""),
        (("added_tokens", 3, "content"), None),
        (("added_tokens", 3, "content"), "\ud800"),
        (("model", "vocab", "\ud800"), 4070),
        (("added_tokens", 3), 5),
        (("added_tokens",), [{}]),
        (("model",), None),
    ],
)
def test_other_pipelines_are_refused(path, value):
    with pytest.raises(ArtifactError, match="tokenizer"):
        Tokenizer.from_json(changed(path, value))


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"\xff", b"[" * 100_000, tokenizer_json("nano")[:-9], b"null"])
def test_damaged_files_are_refused(data):
    with pytest.raises(ArtifactError, match="damaged"):
        Tokenizer.from_json(data)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model", "llama"),
        ("pre", "llama-bpe"),
        ("pre", None),
        ("tokens", None),
        ("tokens", ["a"] * 4103),
        ("tokens", []),
        ("token_type", [1] * 10),
        ("token_type", ["x"] * 4103),
        ("token_type", [4] * 4103),
        ("token_type", [5] + [1] * 4102),
        ("token_type", [4] + [1] * 4102),
        ("merges", ["a b c"]),
        ("merges", ["no-such token"]),
    ],
)
def test_other_gguf_tokenizers_are_refused(key, value):
    metadata = gguf_metadata("nano")
    assert len(metadata["tokenizer.ggml.tokens"]) == 4103
    metadata[f"tokenizer.ggml.{key}"] = value
    with pytest.raises(ArtifactError, match="tokenizer"):
        Tokenizer.from_gguf(metadata)
