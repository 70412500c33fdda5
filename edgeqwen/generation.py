"""One answer as a state machine: logits in, the next ids out; it knows no engine and no template."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgeqwen.errors import ContextOverflowError, RequestError
from edgeqwen.grammar import Guide
from edgeqwen.loop_guard import LoopGuard
from edgeqwen.plan import whole_number
from edgeqwen.sampling import Mask, Row, Sampler, likeliest, log_probabilities
from edgeqwen.segments import Segment
from edgeqwen.stops import StopStrings
from edgeqwen.strict_json import shown
from edgeqwen.template import Special
from edgeqwen.thinking import Split, ThinkSplitter, ThinkStart
from edgeqwen.tokenizer import Tokenizer
from edgeqwen.tools import ToolCallParser
from edgeqwen.types import Delta, FinishReason, GenerationConfig, Sampling, TokenLogprob, ToolCallDelta, Usage

# Qwen's own sentence for a thinking budget that is used up (Qwen3 documentation, quickstart: 24 tokens).
BUDGET_SENTENCE = (
    "\n\nConsidering the limited time by the user, I have to give the solution based on the thinking directly now.\n",
    Special("</think>"),
    "\n\n",
)
TOP_LOGPROBS_MAX, BIAS_MAX = 20, 100


@dataclass(frozen=True, slots=True)
class Prompt:
    """A rendered prompt and the state that it leaves the answer in."""

    ids: tuple[int, ...]
    start: ThinkStart
    tools: bool  # tools were offered: calls are parsed out of the content


class Generation:
    """One answer to one prompt.

    Forward `next_ids`, give the last row of logits to `step`, show its Delta; until `finish_reason` is set.
    """

    def __init__(
        self,
        prompt: Prompt,
        config: GenerationConfig,
        sampling: Sampling,
        tokenizer: Tokenizer,
        *,
        end_ids: frozenset[int],
        context_length: int,
        guide: Guide | None = None,
    ) -> None:
        """`config` has passed check_config, `guide` is new. ContextOverflowError where the prompt leaves no room."""
        if len(prompt.ids) >= context_length:
            raise ContextOverflowError(len(prompt.ids), context_length)
        self.next_ids: tuple[int, ...] = prompt.ids
        self.finish_reason: FinishReason | None = None
        self._prompt_tokens = len(prompt.ids)
        self._room = min(config.max_tokens or context_length, context_length - len(prompt.ids))
        self._config = config
        self._tokenizer = tokenizer
        self._end_ids = end_ids
        self._sampler = Sampler(sampling, prompt.ids)
        self._splitter = ThinkSplitter(tokenizer, prompt.start)
        call_seed = zlib.crc32(np.array(prompt.ids).tobytes())  # ids of calls differ from turn to turn
        only_one = not config.parallel_tool_calls
        self._tools = ToolCallParser(call_seed, only_one=only_one) if prompt.tools else None
        self._stops = StopStrings(config.stop)
        self._loop_guard = LoopGuard() if config.loop_guard else None
        self._budget = config.thinking_budget
        self._answer_tokens = 0
        self.drawn_tokens = 0  # the answer's, but for those that were put behind others because nothing else can follow
        self._guide = guide
        self._thoughts: Mask | None = None  # the ids that thinking may have where the answer must be something
        if guide is not None and guide.holds and self._splitter.state == "content":
            self._splitter.begin_content()

    @property
    def _ended(self) -> bool:
        """A stop string came, or the only call that may come."""
        return self._stops.hit is not None or (self._tools is not None and self._tools.ended)

    @property
    def usage(self) -> Usage:
        """Counts so far; `cached_tokens` is for the caller to fill in."""
        return Usage(self._prompt_tokens, self._answer_tokens, self._splitter.thinking_tokens)

    def step(self, logits: Row) -> Delta:
        """Draw the next id from the row after `next_ids`; what that made visible."""
        thinks = self._splitter.state == "thinking"
        token_id = self._sampler.sample(logits, self._allowed(logits.size))
        logprobs = self._logprobs(logits, token_id, thinking=thinks)
        self.next_ids = (token_id,)
        self._answer_tokens += 1
        self.drawn_tokens += 1
        if token_id in self._end_ids:
            return self._finish("stop", Split(), logprobs)
        if not thinks:
            self._follow(token_id)
        split = self._splitter.push(self.next_ids)
        if thinks:
            split = self._end_thinking(split)
        if self._guide is not None and self._guide.complete:
            return self._finish("stop", split, logprobs)
        if self._loop_guard is not None and self._loop_guard.push(token_id):
            return self._finish("loop", split, logprobs)
        if self._answer_tokens >= self._room:
            return self._finish("length", split, logprobs)
        content, calls = self._content(split.content)
        if self._ended:
            return self._finish("stop", Split(split.thinking, content), logprobs, calls)
        return Delta(split.thinking, content, calls, logprobs)

    def end(self, reason: FinishReason) -> Delta:
        """End the answer from outside, before its time; what the stages still held."""
        return self._finish(reason, Split(), ())

    def _allowed(self, vocab_size: int) -> Mask | None:
        """The ids that may be drawn; None: all. An answer that must be something cannot end within its thinking."""
        guide = self._guide
        if guide is None or (self._splitter.state == "thinking" and not guide.holds):
            return None
        if self._splitter.state == "content":
            return guide.allowed()
        if self._thoughts is None:
            self._thoughts = np.ones(vocab_size, np.bool_)
            self._thoughts[[*self._end_ids]] = False
        return self._thoughts

    def _follow(self, token_id: int) -> None:
        """Let the grammar know of an id of the content; what alone can follow it is put behind it, undrawn."""
        guide = self._guide
        if guide is None:
            return
        guide.push(token_id)
        if guide.holds and not guide.calls:
            self._tools = None  # what looks like a call inside it is text
        if self._config.logprobs is None:  # which every drawn token has
            forced = guide.forced(self._room - self._answer_tokens)
            self._sampler.took(forced)
            self._answer_tokens += len(forced)
            self.next_ids += forced

    def _end_thinking(self, split: Split) -> Split:
        """Force Qwen's sentence and the closing tag where the budget is used up; behind the tag the grammar starts."""
        splitter, holds = self._splitter, self._guide is not None and self._guide.holds
        if splitter.state == "content" and holds:
            split = self._force(BUDGET_SENTENCE[-1:], split)
        elif splitter.state == "thinking" and self._budget is not None and splitter.thinking_tokens >= self._budget:
            split = self._force(BUDGET_SENTENCE, split)
            self._budget = None
        if self._splitter.state == "content" and holds:
            splitter.begin_content()
        return split

    def _force(self, segments: Sequence[Segment], split: Split) -> Split:
        """Put segments behind the drawn id, as far as there is room for them."""
        forced = self._tokenizer.encode_segments(segments)[: max(0, self._room - self._answer_tokens)]
        self._answer_tokens += len(forced)
        self.next_ids = (*self.next_ids, *forced)
        more = self._splitter.push(forced)
        return Split(split.thinking + more.thinking, split.content + more.content)

    def _content(self, text: str) -> tuple[str, tuple[ToolCallDelta, ...]]:
        """Content text -> (what may be shown, tool calls)."""
        if self._tools is None or self._stops.hit is not None:
            return self._stops.push(text), ()
        parsed = self._tools.push(text)
        return self._stops.push(parsed.content), parsed.calls

    def _finish(
        self,
        reason: FinishReason,
        split: Split,
        logprobs: tuple[TokenLogprob, ...],
        calls: tuple[ToolCallDelta, ...] = (),
    ) -> Delta:
        """Empty every stage; `split` holds what the last ids gave (its content already parsed where it has ended)."""
        thinking, content = split.thinking, split.content
        if not self._ended:
            last = self._splitter.flush()
            thinking += last.thinking
            content, calls = self._content(split.content + last.content)
            if self._tools is not None and self._stops.hit is None:
                rest = self._tools.flush()
                content += self._stops.push(rest.content)
                calls += rest.calls
        if self._stops.hit is None:
            content += self._stops.flush()
        if self._stops.hit is not None:
            reason = "stop"
        if reason == "stop" and self._tools is not None and self._tools.calls_seen:
            reason = "tool_calls"
        self.finish_reason = reason
        return Delta(thinking, content, calls, logprobs, finish_reason=reason, usage=self.usage)

    def _logprobs(self, logits: Row, token_id: int, *, thinking: bool) -> tuple[TokenLogprob, ...]:
        if self._config.logprobs is None:
            return ()
        top = likeliest(logits, self._config.logprobs) if self._config.logprobs else np.empty(0, np.intp)
        values = log_probabilities(logits, np.append(top, token_id))
        texts = [self._tokenizer.token_bytes(int(i)).decode("utf-8", "replace") for i in (*top, token_id)]
        pairs = tuple(zip(texts, map(float, values), strict=True))
        text, value = pairs[-1]
        return (TokenLogprob(text, self._tokenizer.token_bytes(token_id), value, pairs[:-1], thinking),)


def check_config(config: GenerationConfig, vocab_size: int) -> None:
    """RequestError for a setting of the wrong type or out of its range; sampling values: see `sampling.resolve`."""
    for name in ("thinking", "loop_guard", "parallel_tool_calls"):
        if not isinstance(getattr(config, name), bool | None):
            raise RequestError(f"{name}={getattr(config, name)!r} must be true or false")
    whole_number("max_tokens", config.max_tokens, 1, 1 << 31)
    whole_number("thinking_budget", config.thinking_budget, 0, 1 << 31, " (0 turns thinking off)")
    whole_number("logprobs", config.logprobs, 0, TOP_LOGPROBS_MAX)
    biases: Any = config.logit_bias  # as it came from a caller
    if not isinstance(biases, Mapping):
        raise RequestError(f"logit_bias={biases!r:.60} must map token ids to numbers")
    for token_id, bias in biases.items():
        whole_number(f"logit_bias[{shown(token_id)}]: the id", token_id, 0, vocab_size - 1, ", the vocabulary")
        if isinstance(bias, bool) or not isinstance(bias, int | float) or not abs(bias) <= BIAS_MAX:
            raise RequestError(f"logit_bias[{token_id}]={bias!r} must be a number from -{BIAS_MAX} to {BIAS_MAX}")


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many ids `a` and `b` share from their start."""
    one, other = list(a), list(b)
    start, end = 0, min(len(one), len(other))
    while start + 256 <= end and one[start : start + 256] == other[start : start + 256]:
        start += 256  # in C: four thousand ids take 20 us
    return next((i for i in range(start, end) if one[i] != other[i]), end)
