"""Says what an artifact is: the manifest and the payloads beside the weights, from a checkpoint; no weights."""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final

from converters.source_file import read_file
from edgeqwen.artifact import Manifest, Source, SourceFile
from edgeqwen.errors import CheckpointError
from edgeqwen.strict_json import CONFIG_BYTES_MAX

if TYPE_CHECKING:
    from collections.abc import Mapping

    from converters.checkpoint import Checkpoint
    from edgeqwen.artifact import ArtifactWriter, Format

_SAMPLING: Final = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty")
_HASHED: Final = ("config.json", "generation_config.json", "tokenizer_config.json")
_MAKERS: Final = {"gguf": "llama-cpp-python", "onnx": "onnx"}  # the package that had a hand in a format's bytes


def describe(
    checkpoint: Checkpoint, writer: ArtifactWriter, formats: Mapping[str, Format], *, trusted: bool
) -> Manifest:
    """Add the tokenizer and the chat template to what has been sealed, and say what the artifact is.

    `trusted`: the template is unknown and was accepted. CheckpointError when no token ends an answer.
    """
    tokenizer = writer.add("tokenizer", "json", checkpoint.tokenizer_json)
    config = json.dumps(checkpoint.tokenizer_config, indent=1, sort_keys=True)
    template = checkpoint.chat_template
    special = {token["content"]: token["id"] for token in checkpoint.tokenizer.data["added_tokens"]}
    return Manifest(
        name=checkpoint.name,
        architecture=checkpoint.shape.architecture,
        shape=checkpoint.shape,
        formats=formats,
        tokenizer=tokenizer,
        tokenizer_config=writer.add("tokenizer_config", "json", config.encode()),
        chat_template=None if template is None else writer.add("chat_template", "jinja", template.encode()),
        trusted_template=trusted,
        end_ids=_end_ids(checkpoint, special),
        special_ids=special,
        context_length=checkpoint.shape.max_position_embeddings,
        sampling=_sampling(checkpoint.generation_config),
        source=_source(checkpoint),
        versions={package: version(package) for key, package in _MAKERS.items() if key in formats},
        files=dict(writer.files),
    )


def _end_ids(checkpoint: Checkpoint, special: Mapping[str, int]) -> tuple[int, ...]:
    """Any of these ends an answer: those of generation_config.json, else of config.json, and the tokenizer's own."""
    named = checkpoint.generation_config.get("eos_token_id", checkpoint.config.get("eos_token_id"))
    ids = list(named) if isinstance(named, list) else [named]
    entry = checkpoint.tokenizer_config.get("eos_token")
    ids.append(special.get(entry.get("content", "") if isinstance(entry, dict) else str(entry)))
    found = tuple(dict.fromkeys(number for number in ids if isinstance(number, int)))
    if not found:
        raise CheckpointError(f"{checkpoint.path} names no eos token; generation_config.json wants an eos_token_id")
    return found


def _sampling(generation_config: Mapping[str, Any]) -> dict[str, float]:
    found = {key: generation_config.get(key) for key in _SAMPLING}
    return {key: float(value) for key, value in found.items() if isinstance(value, (int, float))}


def _source(checkpoint: Checkpoint) -> Source:
    """List the files that were read; weights by size only, their hash would cost a pass of its own."""
    files = {path.name: SourceFile(path.stat().st_size, None) for path in {t.path for t in checkpoint.tensors.values()}}
    small = {"tokenizer.json": checkpoint.tokenizer_json}
    for name in _HASHED:
        if (checkpoint.path / name).exists():
            small[name] = read_file(checkpoint.path, name, CONFIG_BYTES_MAX)
    files |= {name: SourceFile(len(raw), hashlib.sha256(raw).hexdigest()) for name, raw in small.items()}
    return Source(checkpoint.name, files)
