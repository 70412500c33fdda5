"""The tokenizer and the chat template of a checkpoint, checked to be Qwen's byte-level BPE; it encodes nothing.

What is refused here would be tokenized differently by the engines, silently: GGUF can name this one scheme (`qwen2`).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

from converters.source_file import read_file
from edgeqwen.errors import CheckpointError
from edgeqwen.strict_json import CONFIG_BYTES_MAX, parse_object, shown

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

TOKENIZER: Final = "tokenizer.json"
TOKENIZER_CONFIG: Final = "tokenizer_config.json"
TEMPLATE: Final = "chat_template.jinja"  # transformers >= 4.52 writes it beside tokenizer_config.json

MAX_TOKENIZER_BYTES = 64 << 20  # Qwen3's has 11 MB
MAX_TEMPLATE_BYTES = 1 << 20

# How Qwen2 and Qwen3 cut text before BPE; llama.cpp knows it as `qwen2`.
SPLIT_PATTERN: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized")

# The characters that stand for the 256 bytes: printable Latin-1 itself, the rest moved to U+0100 and on (GPT-2).
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
BYTE_CHARS: Final = frozenset(map(chr, [*_PRINTABLE, *range(0x100, 0x100 + 256 - len(_PRINTABLE))]))


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """`json` is tokenizer.json byte for byte, `data` the same parsed; ids are below `size`."""

    json: bytes
    data: Mapping[str, Any]
    config: Mapping[str, Any]
    chat_template: str | None
    size: int


def read_tokenizer(folder: Path) -> TokenizerFiles:
    """Read and check the tokenizer of the checkpoint in `folder`; CheckpointError for any other than Qwen's."""
    names = {entry.name for entry in folder.iterdir()}
    if TOKENIZER not in names:
        old = sorted(names & {"vocab.json", "merges.txt", "tokenizer.model", "qwen.tiktoken"})
        raise CheckpointError(
            f"{folder}: {TOKENIZER} is missing; found {shown(old or sorted(names))}; write it with "
            "AutoTokenizer.from_pretrained(...).save_pretrained(...)"
        )
    raw = read_file(folder, TOKENIZER, MAX_TOKENIZER_BYTES)
    data = parse_object(raw, str(folder / TOKENIZER), CheckpointError)
    where = str(folder / TOKENIZER_CONFIG)
    config = parse_object(read_file(folder, TOKENIZER_CONFIG, CONFIG_BYTES_MAX), where, CheckpointError)
    size = _check_tokenizer(data, str(folder / TOKENIZER))
    _check_decoder_table(config, data, where)
    return TokenizerFiles(raw, data, config, _chat_template(folder, names, config), size)


def _check_tokenizer(data: Mapping[str, Any], where: str) -> int:
    """Return the number of ids, gaps included."""
    _check_pipeline(data, where)
    model = data.get("model")
    if not isinstance(model, dict) or model.get("type") != "BPE":
        raise CheckpointError(f"{where}: model is {shown(model)}; expected a BPE model")
    odd = [
        key
        for key in ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback",
                    "ignore_merges")
        if model.get(key)
    ]  # fmt: skip
    if odd:
        raise CheckpointError(f"{where}: the BPE model sets {shown(odd)}; Qwen's does not")
    vocab = _vocab(model.get("vocab"), where)
    _check_merges(model.get("merges"), vocab, where)
    return _check_added(data.get("added_tokens"), vocab, where)


def _check_pipeline(data: Mapping[str, Any], where: str) -> None:
    if data.get("normalizer") != {"type": "NFC"}:
        raise CheckpointError(f"{where}: normalizer is {shown(data.get('normalizer'))}; Qwen's is NFC")
    found = data.get("pre_tokenizer")
    steps = found.get("pretokenizers") if isinstance(found, dict) and found.get("type") == "Sequence" else None
    if (
        not isinstance(steps, list)
        or len(steps) != 2
        or steps[0] != {"type": "Split", "pattern": {"Regex": SPLIT_PATTERN}, "behavior": "Isolated", "invert": False}
        or not _is_byte_level(steps[1])
    ):
        raise CheckpointError(
            f"{where}: pre_tokenizer is {shown(found)}; Qwen's is Split by its pattern, then ByteLevel"
        )
    if not isinstance(decoder := data.get("decoder"), dict) or decoder.get("type") != "ByteLevel":
        raise CheckpointError(f"{where}: decoder is {shown(decoder)}; Qwen's is ByteLevel")
    post = data.get("post_processor")
    if post is not None and (not isinstance(post, dict) or post.get("type") != "ByteLevel"):
        raise CheckpointError(f"{where}: post_processor is {shown(post)}; a chat model's is ByteLevel or null")


def _is_byte_level(step: object) -> bool:
    return (
        isinstance(step, dict)
        and step.get("type") == "ByteLevel"
        and step.get("add_prefix_space") is False
        and step.get("use_regex") is False
    )


def _vocab(vocab: object, where: str) -> dict[str, int]:
    if not isinstance(vocab, dict) or not vocab.keys() >= BYTE_CHARS:
        missing = len(BYTE_CHARS - vocab.keys()) if isinstance(vocab, dict) else 256
        raise CheckpointError(f"{where}: vocab lacks {missing} of the 256 byte tokens; expected a byte-level BPE")
    ids = vocab.values()
    if set(map(type, ids)) != {int} or min(ids) != 0 or max(ids) != len(vocab) - 1 or len(set(ids)) != len(vocab):
        raise CheckpointError(f"{where}: the ids of the {len(vocab):,} tokens of vocab are not 0 to {len(vocab) - 1:,}")
    return vocab


def _check_merges(merges: object, vocab: Mapping[str, int], where: str) -> None:
    """Refuse merges that are not all "a b", or all ["a", "b"], with both sides and their join in the vocabulary."""
    kinds = set(map(type, merges)) if isinstance(merges, list) else set()
    if not isinstance(merges, list) or kinds not in ({str}, {list}):
        raise CheckpointError(f"{where}: merges is {shown(merges)}; expected a list of pairs of tokens")
    pairs = [merge.split(" ") for merge in merges] if kinds == {str} else merges
    try:
        used = {*chain.from_iterable(pairs), *map("".join, pairs)}  # sides and joins; sets, for 150,000 merges
    except TypeError:
        raise CheckpointError(f"{where}: merges holds other things than pairs of texts") from None
    if set(map(len, pairs)) != {2}:
        odd = next(pair for pair in pairs if len(pair) != 2)
        raise CheckpointError(f"{where}: merges has {shown(odd)}; expected pairs of tokens")
    if missing := used - vocab.keys():
        raise CheckpointError(f"{where}: merges uses {shown(min(missing))}, which is not in vocab")


def _check_added(added: object, vocab: Mapping[str, int], where: str) -> int:
    if not isinstance(added, list):
        raise CheckpointError(f"{where}: added_tokens is {shown(added)}; expected a list")
    contents: dict[str, int] = {}
    taken = set(vocab.values())
    for token in added:
        content, number = (token.get("content"), token.get("id")) if isinstance(token, dict) else (None, None)
        if not isinstance(content, str) or not content or type(number) is not int or not 0 <= number < 1 << 20:
            raise CheckpointError(f"{where}: added token {shown(token)}; expected an id and a content")
        if set_flags := [flag for flag in _FLAGS if token.get(flag)]:
            raise CheckpointError(f"{where}: added token {shown(content)} sets {shown(set_flags)}; Qwen's set none")
        if content in contents or (number in taken and vocab.get(content) != number):
            raise CheckpointError(f"{where}: added token {shown(content)} or its id {number} is there twice")
        contents[content] = number
        taken.add(number)
    return max(taken) + 1


def _check_decoder_table(config: Mapping[str, Any], data: Mapping[str, Any], where: str) -> None:
    """`added_tokens_decoder` (transformers 4) repeats the added tokens: refuse two that differ."""
    known = {str(token["id"]): token["content"] for token in data["added_tokens"]}
    table = config.get("added_tokens_decoder", {})
    if not isinstance(table, dict):
        raise CheckpointError(f"{where}: added_tokens_decoder is {shown(table)}, not an object")
    for number, token in table.items():
        content = token.get("content") if isinstance(token, dict) else None
        if content is None or known.get(number) != content:
            raise CheckpointError(
                f"{where}: added_tokens_decoder has {shown(content)} at {shown(number)}, {TOKENIZER} has "
                f"{shown(known.get(number))}: save the tokenizer again"
            )


def _chat_template(folder: Path, names: set[str], config: Mapping[str, Any]) -> str | None:
    """Return the file's template before the key's, as transformers does; of a list of named ones the `default`."""
    if TEMPLATE in names:
        try:
            return read_file(folder, TEMPLATE, MAX_TEMPLATE_BYTES).decode("utf-8")
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{folder / TEMPLATE}: not UTF-8: {error}") from None
    template = config.get("chat_template")
    if isinstance(template, list):
        named = {item.get("name"): item.get("template") for item in template if isinstance(item, dict)}
        template = named.get("default", template)
    if template is not None and not isinstance(template, str):
        raise CheckpointError(f"{folder / TOKENIZER_CONFIG}: chat_template is {shown(template)}, not a text")
    return template
