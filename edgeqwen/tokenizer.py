"""Segments -> ids, and ids -> text as they come: Qwen's byte-level BPE, where text never becomes a control token.

It knows no template and no engine. Only this module imports the `tokenizers` library.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from edgeqwen.errors import ArtifactError, RequestError
from edgeqwen.segments import Segment, Special

if TYPE_CHECKING:
    import tokenizers

MAX_FILE_BYTES = 1 << 26  # Qwen3's tokenizer.json has 11 MB
MAX_TOKENS = 1 << 20  # Qwen3 has 151,669
MAX_ADDED_TOKENS = 1 << 12  # Qwen3 has 26
MAX_TEXT_BYTES = 1 << 22  # of one prompt; 4 MiB are over a million tokens

# Qwen2 and Qwen3 share this pattern, llama.cpp calls it "qwen2"; Qwen3.5 and others have different ones.
_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPLIT = {"type": "Split", "pattern": {"Regex": _PATTERN}, "behavior": "Isolated", "invert": False}
_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
# What makes other ids than plain BPE would: each must be absent, null, false or empty.
_MODEL_OPTIONS = (
    "dropout",
    "unk_token",
    "continuing_subword_prefix",
    "end_of_word_suffix",
    "fuse_unk",
    "byte_fallback",
    "ignore_merges",
)
_ADDED_OPTIONS = ("single_word", "lstrip", "rstrip", "normalized")  # each would change the text around the token

_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5  # tokenizer.ggml.token_type


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's spelling of bytes: printable Latin-1 stands for itself, the rest goes to U+0100 and up."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in set(printable)]
    shifted = {chr(0x100 + index): byte for index, byte in enumerate(others)}
    return {chr(byte): byte for byte in printable} | shifted


_BYTE_OF = _byte_alphabet()


@dataclass(frozen=True, slots=True)
class _Vocabulary:
    """What both containers hold: base tokens and merges in order, added tokens with their flag `special`."""

    ids: dict[str, int]  # 0, 1, ... in this order
    merges: list[tuple[str, str]]
    added: list[tuple[str, bool]]  # ids continue those of `ids`


class Tokenizer:
    """Qwen's tokenizer. `added` maps added tokens to ids; ids in `control` are never shown as text."""

    def __init__(self, vocabulary: _Vocabulary) -> None:
        """Use from_json or from_gguf. Raises ArtifactError for a vocabulary that cannot be Qwen's."""
        _check_added(vocabulary)
        added = {text: index for index, (text, _) in enumerate(vocabulary.added, len(vocabulary.ids))}
        self._bpe = _pipeline(vocabulary)
        self._texts = [*vocabulary.ids, *added]
        self._bytes: dict[int, bytes] = {number: text.encode() for text, number in added.items()}
        self.added: Mapping[str, int] = MappingProxyType(added)
        self.control = frozenset(
            added[text] for text, special in vocabulary.added if special or (text[:2], text[-2:]) == ("<|", "|>")
        )
        self.vocab_size = len(self._texts)

    @classmethod
    def from_json(cls, data: bytes) -> Tokenizer:
        """Read a tokenizer.json. Raises ArtifactError for anything but Qwen's pipeline: ids would silently differ."""
        return cls(_read_json(data))

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> Tokenizer:
        """Read `tokenizer.ggml.*`: the ids and texts of the tokenizer.json it was made from, without the padding."""
        return cls(_read_gguf(metadata))

    def to_json(self) -> bytes:
        """Write the tokenizer.json that `from_json` reads: the same ids and texts."""
        data = json.loads(self._bpe.to_str())
        data["decoder"] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
        flags = dict.fromkeys(_ADDED_OPTIONS, False)
        data["added_tokens"] = [
            {"id": index, "content": text, **flags, "special": index in self.control}
            for text, index in self.added.items()
        ]
        return json.dumps(data, ensure_ascii=False).encode()

    def encode(self, text: str) -> list[int]:
        """Ids of a text that is not trusted: no added token is ever among them.

        Raises RequestError for lone surrogates and for more than 4 MiB of UTF-8.
        """
        _check_text(text)
        ids: list[int] = self._bpe.encode(text, add_special_tokens=False).ids
        return ids

    def encode_segments(self, segments: Sequence[Segment]) -> list[int]:
        """Ids of a rendered prompt; the text between two control tokens is encoded whole, as the reference does.

        A control token that this vocabulary lacks is text, as it is for the reference. Raises RequestError like encode.
        """
        ids: list[int] = []
        text: list[str] = []
        _check_text("".join(part for part in segments if isinstance(part, str)))
        for part in segments:
            written = part.text if isinstance(part, Special) else part
            token_id = self.added.get(written) if isinstance(part, Special) else None
            if token_id is None:
                text.append(written)
                continue
            ids += self.encode("".join(text))
            ids.append(token_id)
            text.clear()
        return ids + self.encode("".join(text))

    def id(self, token: str) -> int | None:
        """Give the id of an added token such as `</think>`; None where this vocabulary has no such token."""
        return self.added.get(token)

    def token_bytes(self, token_id: int) -> bytes:
        """Give the bytes of a token; b"" for ids beyond the vocabulary (the padding of the embedding)."""
        data = self._bytes.get(token_id)
        if data is None:
            data = self._bytes[token_id] = self._spelled(token_id)
        return data

    def decoder(self) -> Decoder:
        return Decoder(self)

    def _spelled(self, token_id: int) -> bytes:
        if not 0 <= token_id < self.vocab_size:
            return b""
        text = self._texts[token_id]
        try:
            return bytes(_BYTE_OF[char] for char in text)
        except KeyError:  # not in the byte alphabet: the library, too, takes such a token as it is written
            return text.encode()


class Decoder:
    """Ids -> text, incrementally: a character split over tokens comes whole; control tokens give no text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._token_bytes = tokenizer.token_bytes
        self._control = tokenizer.control
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, ids: Sequence[int]) -> str:
        """Give the characters that these ids complete; bytes that are no UTF-8 give U+FFFD."""
        return self._utf8.decode(b"".join(self._token_bytes(number) for number in ids if number not in self._control))

    def flush(self) -> str:
        """End the text: an unfinished character gives one U+FFFD."""
        return self._utf8.decode(b"", final=True)


def _check_text(text: str) -> None:
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise RequestError(
            f"the text has a lone surrogate (U+{ord(text[error.start]):04X}) at character {error.start}: "
            "it is no valid Unicode; send it as UTF-8"
        ) from None
    if size > MAX_TEXT_BYTES:
        raise RequestError(f"the text has {size} bytes: at most {MAX_TEXT_BYTES} are taken")


def _pipeline(vocabulary: _Vocabulary) -> tokenizers.Tokenizer:
    """Build NFC -> split -> byte level -> BPE without the added tokens: nothing in a text can match one."""
    from tokenizers import Regex, models, normalizers, pre_tokenizers  # noqa: PLC0415  40 ms
    from tokenizers import Tokenizer as Library  # noqa: PLC0415

    missing = [byte for char, byte in _BYTE_OF.items() if char not in vocabulary.ids]
    if missing:
        raise ArtifactError(f"the tokenizer's vocabulary is damaged: {len(missing)} of the 256 bytes have no token")
    try:
        library = Library(models.BPE(vocab=vocabulary.ids, merges=vocabulary.merges))
    except Exception as error:  # noqa: BLE001  the library raises bare Exception
        raise ArtifactError(f"the tokenizer's merges do not fit its vocabulary: {error}") from None
    made = len({left + right for left, right in vocabulary.merges})
    if 2 * made < len(vocabulary.ids) - len(_BYTE_OF):
        raise ArtifactError(
            f"the tokenizer is damaged: its {len(vocabulary.merges)} merges make {made} of its "
            f"{len(vocabulary.ids) - len(_BYTE_OF)} tokens of more than one byte"
        )
    split = pre_tokenizers.Split(Regex(_PATTERN), behavior="isolated", invert=False)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    library.normalizer = normalizers.NFC()
    library.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    return library


def _check_added(vocabulary: _Vocabulary) -> None:
    texts: list[Any] = [text for text, _ in vocabulary.added]  # what the file says, not yet known to be str
    if len(texts) > MAX_ADDED_TOKENS:
        raise ArtifactError(f"the tokenizer has {len(texts)} added tokens: at most {MAX_ADDED_TOKENS} are taken")
    usable = all(isinstance(text, str) and text.isprintable() and text not in vocabulary.ids for text in texts)
    if not usable or len(set(texts)) != len(texts) or "" in texts:
        raise ArtifactError("the tokenizer's added tokens are damaged: one is empty, not printable or occurs twice")


def _read_json(data: bytes) -> _Vocabulary:
    if len(data) > MAX_FILE_BYTES:
        raise ArtifactError(f"tokenizer.json has {len(data)} bytes: at most {MAX_FILE_BYTES} are read")
    try:
        root = json.loads(data)
        model = root["model"]
        _check_pipeline(root, model)
        ids = _by_id(model["vocab"], first=0)
        entries = {entry["content"]: entry["id"] for entry in root["added_tokens"]}
        special = {entry["content"]: bool(entry["special"]) for entry in root["added_tokens"]}
        added = [(text, special[text]) for text in _by_id(entries, first=len(ids))]
        merges = _merges(model["merges"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ArtifactError(f"tokenizer.json is damaged: {type(error).__name__}: {error}") from None
    return _Vocabulary(ids, merges, added)


def _check_pipeline(root: Mapping[str, Any], model: Mapping[str, Any]) -> None:
    steps = root["pre_tokenizer"]["pretokenizers"]
    wanted: list[tuple[str, Any, Any]] = [
        ("normalizer", root["normalizer"], {"type": "NFC"}),
        (
            "pre_tokenizer",
            [{**step, "trim_offsets": None} for step in steps],
            [
                {**_SPLIT, "trim_offsets": None},
                {**_BYTE_LEVEL, "trim_offsets": None},
            ],
        ),
        ("decoder", root["decoder"]["type"], "ByteLevel"),
        ("model", model["type"], "BPE"),
        *((f"model.{name}", model.get(name) or None, None) for name in _MODEL_OPTIONS),
        *(
            (f"added token {token['content']!r}, {name}", token[name], False)
            for token in root["added_tokens"]
            for name in _ADDED_OPTIONS
        ),
    ]
    for name, found, expected in wanted:
        if found != expected:
            raise ArtifactError(
                f"tokenizer.json is not that of Qwen2 or Qwen3: {name} is {found!r:.120}, and theirs is {expected!r}"
            )


def _by_id(ids: dict[str, int], first: int) -> dict[str, int]:
    """Order texts by id; the ids must be first, first + 1, ... without a hole."""
    wanted = list(range(first, first + len(ids)))
    if len(ids) > MAX_TOKENS or sorted(ids.values()) != wanted:
        raise ValueError(f"the ids of {len(ids)} tokens do not run from {first} without a hole")
    return ids if list(ids.values()) == wanted else {text: ids[text] for text in sorted(ids, key=ids.__getitem__)}


def _merges(merges: Sequence[Any]) -> list[tuple[str, str]]:
    """Read merges in both spellings: ["a", "b"], and "a b" in older files and in GGUF."""
    if len(merges) > MAX_TOKENS:
        raise ValueError(f"{len(merges)} merges: at most {MAX_TOKENS} are read")
    texts = bool(len(merges)) and isinstance(merges[0], str)
    pairs = [tuple(merge.split(" ")) for merge in merges] if texts else list(map(tuple, merges))
    if not set(map(len, pairs)) <= {2}:
        raise ValueError("a merge is not a pair of tokens")
    return pairs


def _read_gguf(metadata: Mapping[str, Any]) -> _Vocabulary:
    for key, wanted in (("model", "gpt2"), ("pre", "qwen2")):
        found = metadata.get(f"tokenizer.ggml.{key}")
        if found != wanted:
            raise ArtifactError(f"the GGUF file's tokenizer is not Qwen's: {key} is {found!r:.80}, not {wanted!r}")
    try:
        tokens = list(metadata["tokenizer.ggml.tokens"])
        types = [int(kind) for kind in metadata["tokenizer.ggml.token_type"]]
        merges = _merges(metadata["tokenizer.ggml.merges"])
    except (KeyError, ValueError, TypeError) as error:
        raise ArtifactError(f"the GGUF file's tokenizer is damaged: {type(error).__name__}: {error}") from None
    if len(tokens) != len(types) or len(tokens) > MAX_TOKENS:
        raise ArtifactError(f"the GGUF file's tokenizer is damaged: {len(tokens)} tokens, {len(types)} types")
    base, end = types.count(_NORMAL), len(types) - types.count(_UNUSED)
    order = types[:base] + [_USER_DEFINED] * (end - base) + types[end:]
    shown = [_USER_DEFINED if kind == _CONTROL else kind for kind in types]
    if shown != order or order[end:] != [_UNUSED] * (len(types) - end):
        raise ArtifactError("the GGUF file's tokenizer is not Qwen's: added tokens must follow all the others")
    added = [(tokens[index], types[index] == _CONTROL) for index in range(base, end)]
    ids = dict(zip(tokens[:base], range(base), strict=True))
    if len(ids) != base:
        raise ArtifactError("the GGUF file's tokenizer is damaged: a token occurs twice")
    return _Vocabulary(ids, merges, added)
