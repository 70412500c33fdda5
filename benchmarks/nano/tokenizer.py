"""The small tokenizer, cut from Qwen3's own, and prompts rendered by Qwen3's own chat template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

BASE_SIZE = 4070  # with Qwen3's 26 added tokens: 4096
KEPT = ("additional_special_tokens", "eos_token", "pad_token", "tokenizer_class", "clean_up_tokenization_spaces")


def cut(source: Path, target: Path) -> None:
    """Write the first 4,070 tokens of the Qwen3 tokenizer in `source` and its added tokens to `target`.

    A prefix of the ranks is closed under its merges: a merge makes one token, from two of lower rank.
    """
    full = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    vocab = {text: rank for text, rank in full["model"]["vocab"].items() if rank < BASE_SIZE}
    merges = [merge if isinstance(merge, list) else merge.split(" ") for merge in full["model"]["merges"]]
    full["model"]["vocab"] = dict(sorted(vocab.items(), key=lambda item: item[1]))
    full["model"]["merges"] = [[left, right] for left, right in merges if left + right in vocab]
    for index, token in enumerate(full["added_tokens"]):
        token["id"] = BASE_SIZE + index
    settings = json.loads((source / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings["added_tokens_decoder"] = {
        str(token["id"]): {key: item for key, item in token.items() if key != "id"} for token in full["added_tokens"]
    }
    settings["model_max_length"] = 4096
    target.mkdir(parents=True, exist_ok=True)
    for name, content in (("tokenizer.json", full), ("tokenizer_config.json", settings)):
        text = json.dumps(content, ensure_ascii=False, indent=1 if name == "tokenizer.json" else 2)
        (target / name).write_text(text + "\n", encoding="utf-8")


def to_json(value: Any) -> str:
    """Return what transformers' `tojson` filter gives: no escapes for HTML or for other scripts."""
    return json.dumps(value, ensure_ascii=False)


class Renderer:
    """Chats to token ids and back, as the tokenizer's folder says."""

    def __init__(self, folder: Path) -> None:
        """Open the tokenizer and the template in `folder`."""
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.filters["tojson"] = to_json
        self.template = environment.from_string(settings["chat_template"])
        self.end = self.special("<|im_end|>")
        self.start = self.special("<|im_start|>")
        self.stops = (self.end, self.special("<|endoftext|>"))
        self.think = self.special("<think>")
        self.end_think = self.special("</think>")
        self.assistant = self.encode("assistant\n")

    def special(self, text: str) -> int:
        """Return the id of an added token."""
        index = self.tokenizer.token_to_id(text)
        if index is None:
            message = f"the tokenizer has no token {text}"
            raise ValueError(message)
        return int(index)

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`."""
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: list[int]) -> str:
        """Return the text of `ids`, added tokens included."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=False))

    def prompt(self, messages: Any, tools: Any, *, thinking: bool) -> str:
        """Return the chat as the template renders it, up to where the answer begins."""
        return str(
            self.template.render(
                messages=messages, tools=list(tools) or None, add_generation_prompt=True, enable_thinking=thinking
            )
        )
