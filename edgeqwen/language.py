"""A model but for its weights: messages in, a Generation out, the same for the library and the server."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

from edgeqwen.errors import RequestError
from edgeqwen.generation import Generation, Prompt, check_config
from edgeqwen.grammar import Grammars
from edgeqwen.plan import Plan
from edgeqwen.sampling import resolve
from edgeqwen.template import ChatTemplate
from edgeqwen.thinking import think_start
from edgeqwen.tokenizer import Tokenizer
from edgeqwen.tools import offered
from edgeqwen.types import (
    SAMPLING_PLAIN,
    SAMPLING_THINKING,
    GenerationConfig,
    Message,
    ModelShape,
    Sampling,
    Tool,
)

logger = logging.getLogger("edgeqwen")


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What is known of a model besides its weights."""

    name: str
    shape: ModelShape
    end_ids: frozenset[int]
    recommended: GenerationConfig = field(default_factory=GenerationConfig)  # the file's own sampling values
    plan: Plan | None = None  # the engine, how it was loaded, and why


class Language:
    """A tokenizer, a chat template and what the model's files recommend. Safe to use from several threads."""

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate, card: ModelCard) -> None:
        self.tokenizer = tokenizer
        self.template = template
        self.card = card
        self._grammars = Grammars(tokenizer, card.shape.vocab_size, card.end_ids)
        self._warned = False

    def answer(
        self, messages: Sequence[Message], tools: Sequence[Tool], config: GenerationConfig, *, context_length: int
    ) -> Generation:
        """The answer to a conversation that is normalised already; RequestError for what cannot be asked."""
        check_config(config, self.tokenizer.vocab_size)
        thinking = self._thinks(config)
        tools = offered(tools, config.tool_choice)
        prompt = self.prompt(messages, tools, thinking=thinking)
        if prompt.start == "open" and config.thinking is False:
            raise RequestError(f"{self.card.name} always thinks: its template has no switch; set a thinking_budget")
        sampling = self.sampling(config, thinking=thinking or prompt.start == "open")
        return self._generation(prompt, config, sampling, context_length, tools)

    def continuation(self, prompt: str | Sequence[int], config: GenerationConfig, *, context_length: int) -> Generation:
        """What follows a text or its ids: no template and no thinking apart; all of it is content, tags included.

        A text never holds control tokens; ids may. RequestError for what cannot be asked.
        """
        check_config(config, self.tokenizer.vocab_size)
        ids = tuple(self.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt)
        if not ids:
            raise RequestError("the prompt is empty: there is nothing to continue")
        if not (min(ids) >= 0 and max(ids) < self.tokenizer.vocab_size):
            raise RequestError(f"the prompt's ids must be 0..{self.tokenizer.vocab_size - 1}, the vocabulary")
        sampling = self.sampling(config, thinking=False)
        return self._generation(Prompt(ids, "text", tools=False), config, sampling, context_length)

    def prompt(self, messages: Sequence[Message], tools: Sequence[Tool], *, thinking: bool) -> Prompt:
        """Render and encode a conversation."""
        ids = self.tokenizer.encode_segments(self.template.render(messages, tools, thinking=thinking))
        start = think_start(ids, self.tokenizer, thinks=self.template.thinks, thinking=thinking)
        return Prompt(tuple(ids), start, bool(tools))

    def sampling(self, config: GenerationConfig, *, thinking: bool) -> Sampling:
        """Qwen3's presets per mode; a file's own recommendations are for thinking, or for a model that cannot."""
        preset = SAMPLING_THINKING if thinking else SAMPLING_PLAIN
        if thinking or not self.template.thinks:
            preset = resolve(self.card.recommended, preset)
        sampling = resolve(config, preset)
        if thinking and sampling.temperature == 0 and not self._warned:
            self._warned = True
            logger.warning("greedy decoding makes a thinking Qwen3 repeat itself; Qwen recommends temperature 0.6")
        return sampling

    def _thinks(self, config: GenerationConfig) -> bool:
        """Whether the answer may think: asked for, or left open, by a model that can."""
        if config.thinking and not self.template.thinks:
            raise RequestError(f"{self.card.name} has no thinking mode: its chat template knows no switch for it")
        return self.template.thinks and config.thinking is not False and config.thinking_budget != 0

    def _generation(
        self,
        prompt: Prompt,
        config: GenerationConfig,
        sampling: Sampling,
        context_length: int,
        tools: Sequence[Tool] = (),
    ) -> Generation:
        return Generation(
            prompt, config, sampling, self.tokenizer,
            end_ids=self.card.end_ids, context_length=context_length, guide=self._grammars.guide(config, tools),
        )  # fmt: skip
