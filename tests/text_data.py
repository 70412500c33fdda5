"""What the tests of the text layer share: tokenizers, their oracles, template sources and a corpus."""

import json
import lzma
from functools import lru_cache
from importlib import resources
from itertools import combinations, pairwise
from pathlib import Path

import tokenizers
from hypothesis import settings

from edgeqwen.tokenizer import Tokenizer

DATA = Path(__file__).parent / "data"


@lru_cache
def tokenizer_json(name):
    if name == "nano":
        return (resources.files("edgeqwen") / "nano" / "tokenizer.json").read_bytes()
    return lzma.decompress((DATA / "qwen3-tokenizer.json.xz").read_bytes())


@lru_cache
def tokenizer(name="nano"):
    return Tokenizer.from_json(tokenizer_json(name))


@lru_cache
def library(name="nano"):
    """The oracle: the whole tokenizer.json, added tokens included, in the library that transformers uses."""
    return tokenizers.Tokenizer.from_str(tokenizer_json(name).decode())


@lru_cache
def corpus():
    return tuple(lzma.decompress((DATA / "corpus.txt.xz").read_bytes()).decode().split("\n"))


def examples(count):
    """Settings of a property test: the same examples each time, and no clock."""
    return settings(max_examples=count, derandomize=True, database=None, deadline=None)


def gguf_metadata(name, padding=7):
    """What llama.cpp's converter writes for a tokenizer.json."""
    root = json.loads(tokenizer_json(name))
    added = root["added_tokens"]
    tokens = sorted(root["model"]["vocab"], key=root["model"]["vocab"].get)
    types = [1] * len(tokens)
    for token in added:
        tokens.append(token["content"])
        types.append(3 if token["special"] or token["content"].startswith("<|") else 4)
    first = len(tokens)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": [*tokens, *(f"[PAD{first + i}]" for i in range(padding))],
        "tokenizer.ggml.token_type": types + [5] * padding,
        "tokenizer.ggml.merges": [" ".join(m) if isinstance(m, list) else m for m in root["model"]["merges"]],
    }


def cuts(items, pieces=3):
    """Cut into 1, 2 and 3 pieces in every way, and into single items."""
    yield [items]
    yield [items[i : i + 1] for i in range(len(items))]
    for count in range(1, pieces):
        for marks in combinations(range(1, len(items)), count):
            edges = [0, *marks, len(items)]
            yield [items[a:b] for a, b in pairwise(edges)]
