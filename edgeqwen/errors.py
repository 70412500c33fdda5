"""Every error that edgeqwen raises on purpose; it knows no engine and no file format.

EdgeqwenError                 one line that says what was wrong, what was found, what would work
├── RequestError              a message, a parameter or a name that cannot be used
│   └── ContextOverflowError  prompt and context length, both counted
├── ArtifactError             an artifact or a GGUF file is damaged, hostile or of another version
│   └── ArtifactBusyError     another run is writing it
├── CheckpointError           a checkpoint is damaged, hostile or of an unsupported kind
├── TemplateError             a chat template is unknown, not trusted or refuses the messages
├── DownloadError             a hub id could not be fetched
└── EngineError               an inference engine failed
    ├── EngineMissingError    it is not installed; the message carries the pip line
    ├── InterruptedForwardError  a step was stopped by Model.interrupt
    ├── NoRoomError           the KV cache is full
    ├── BusyError             its queue is full; the text says when to ask again
    ├── EngineDownError       it is loading, stopping or has died and is being started again
    └── MemoryShortError      what was asked would not fit into memory
"""

from __future__ import annotations


class EdgeqwenError(Exception):
    """Root of the tree; the command line prints its text on one line and exits with 1."""


class RequestError(EdgeqwenError, ValueError):
    """A message, a parameter or a name that cannot be used as it is."""


class ContextOverflowError(RequestError):
    """The prompt leaves no room for an answer; nothing is ever cut silently."""

    def __init__(self, prompt_tokens: int, context_length: int) -> None:
        self.prompt_tokens = prompt_tokens
        self.context_length = context_length
        super().__init__(
            f"{self.found}: shorten the messages, or load with a larger context_length (--context) if the model has one"
        )

    @property
    def found(self) -> str:
        """What does not go together."""
        held = f"the context holds {self.context_length}, one of them for the answer"
        return f"the prompt has {self.prompt_tokens} tokens and {held}"


class ArtifactError(EdgeqwenError):
    """An artifact or a GGUF file is damaged, hostile or written for another version."""


class ArtifactBusyError(ArtifactError):
    """Another run is writing the artifact."""


class CheckpointError(EdgeqwenError):
    """A checkpoint is damaged, hostile or of a kind that is not supported."""


class TemplateError(EdgeqwenError):
    """A chat template is unknown, not trusted or refuses the messages."""


class DownloadError(EdgeqwenError):
    """A hub id could not be fetched: offline, not found, refused or damaged."""


class EngineError(EdgeqwenError):
    """An inference engine failed; the text carries its own last words."""


class EngineMissingError(EngineError):
    """The engine is not installed; the text carries the pip line that installs it."""


class InterruptedForwardError(EngineError):
    """A step was stopped by `interrupt`; the sequences are as long as before it."""


class NoRoomError(EngineError):
    """The KV cache cannot take the tokens of this step."""


class MemoryShortError(EngineError):
    """What was asked would not fit into the memory of this machine."""


class BusyError(EngineError):
    """The queue is full; `retry_after_s` is a guess at when there will be room."""

    def __init__(self, waiting: int, retry_after_s: int) -> None:
        super().__init__(f"{waiting} requests are waiting already: ask again in about {retry_after_s} s")
        self.retry_after_s = retry_after_s


class EngineDownError(EngineError):
    """The engine is loading, stopping, or has died and is being started again."""
