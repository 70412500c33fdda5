"""A model whose words are known: the scripted engine behind nano's tokenizer and Qwen's templates."""

import json
from pathlib import Path

from edgeqwen.backends.scripted import ScriptedBackend
from edgeqwen.catalog import NANO
from edgeqwen.model import Model, ModelCard
from edgeqwen.segments import Special
from edgeqwen.template import find_template
from edgeqwen.tokenizer import Tokenizer
from edgeqwen.types import ModelShape

TOKENIZER = Tokenizer.from_json((NANO / "tokenizer.json").read_bytes())
NO_END = {TOKENIZER.id(token): -100.0 for token in ("<|im_end|>", "<|endoftext|>")}  # bias: an answer goes on
QWEN3 = find_template(json.loads((NANO / "tokenizer_config.json").read_text())["chat_template"])
QWEN25 = find_template((Path(__file__).parent / "data" / "qwen2.5.jinja").read_text())
SHAPE = ModelShape("qwen3", 256, 768, 4, 4, 2, 128, 4096, 4096, 1e-6, 1e6, tie_word_embeddings=True)
END = TOKENIZER.id("<|im_end|>")
TURN_START = (Special("<|im_start|>"), "assistant\n")
TURN = TOKENIZER.encode_segments(TURN_START)
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]


def segments(text):
    """Text with tags -> segments in which the tags are control tokens, as a model would write them."""
    out = [text]
    for tag in ("<think>", "</think>", "<tool_call>", "</tool_call>"):
        out = [
            piece
            for part in out
            for piece in ([part] if isinstance(part, Special) else _split(part, tag))
            if piece != ""
        ]
    return out


def _split(text, tag):
    first, *rest = text.split(tag)
    return [first, *(piece for part in rest for piece in (Special(tag), part))]


def script(answer):
    """An engine's script: behind the last turn's start, and what the template put there, it writes `answer`."""
    words = [*TOKENIZER.encode_segments(segments(answer)), END]

    def next_id(ids):
        start = max(i for i in range(len(ids) - len(TURN) + 1) if list(ids[i : i + len(TURN)]) == TURN) + len(TURN)
        written = list(ids[start:])
        empty_block = TOKENIZER.encode_segments([Special("<think>"), "\n\n", Special("</think>"), "\n\n"])
        if written[: len(empty_block)] == empty_block and not answer.startswith("<think>"):
            written = written[len(empty_block) :]
        return words[min(len(written), len(words) - 1)]

    return next_id


def model_saying(answer, *, template=QWEN3, **settings):
    backend = ScriptedBackend(
        answer if callable(answer) else script(answer), vocab_size=4096, **{"context_length": 2048, **settings}
    )
    return Model(backend, TOKENIZER, template, ModelCard("scripted", SHAPE, frozenset({END})))


THOUGHT = "<think>\nTwo and two.\n\n</think>\n\nIt is 4.\n"
