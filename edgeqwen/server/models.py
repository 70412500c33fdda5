"""The models of a server by their names: exact ones, aliases, and what clients write for the one model there is."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from edgeqwen.errors import EngineDownError, RequestError
from edgeqwen.server.failures import HttpError
from edgeqwen.server.request import Engine

# What is added to a model's name for the form it is in: qwen3-0.6b-q4_k_m, Qwen3-0.6B-GGUF, qwen3:0.6b-q8_0
_FORM = re.compile(
    r"[-.:](?:gguf|onnx|int[48]|fp?(?:16|32)|bf16|i?q\d(?:_[a-z0-9]+)*|instruct|chat|latest|awq|gptq|mlx|\d+bit)$"
)
_QWEN = re.compile(r"^qwen(?:\d+(?:\.\d+)?)?-")


@dataclass(frozen=True, slots=True)
class Served:
    """A model, its engine, and the names it was started with; its own name is known once it is loaded."""

    engine: Engine
    names: tuple[str, ...]
    aliases: tuple[str, ...] = ()

    def check_loaded(self) -> None:
        """EngineDownError until it is loaded."""
        if self.engine.info is None:
            raise EngineDownError(f"{self.names[0]} is being loaded: ask again in a moment")

    @property
    def name(self) -> str:
        """The name that answers carry."""
        return self.engine.info.name if self.engine.info else self.names[0]

    @property
    def all_names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((self.name, *self.aliases, *self.names)))


@dataclass(frozen=True, slots=True)
class Models:
    """All models of a server."""

    served: tuple[Served, ...]
    created: int = 0  # when the server was started, seconds since 1970

    def find(self, name: str | None) -> Served:
        """The model of a name, or of none where there is only one; HttpError 404 that lists what there is.

        As it is; then without case and owner; then without form (q4_k_m, GGUF); then qwen-0.6b for qwen3-0.6b: each
        where that leaves exactly one model.
        """
        if not name:
            if len(self.served) == 1:
                return self.served[0]
            raise HttpError(400, f"model is missing: name one of {self._list()}", param="model")
        for form in (str, _uncased, _plain, _familiar):
            found = [served for served in self.served if form(name) in map(form, served.all_names)]
            if len(found) == 1:
                return found[0]
        raise HttpError(
            404,
            f"there is no model {name[:80]!r} here; there are {self._list()}",
            code="model_not_found",
            param="model",
        )

    def aliases(self, served: Served) -> list[str]:
        """The other names by which it alone is found as they are."""
        others = [name for other in self.served if other is not served for name in other.all_names]
        return [name for name in served.all_names if name != self.identity(served) and name not in others]

    def identity(self, served: Served) -> str:
        """A name that no other model here has: its own, or what it was started with."""
        alike = [other for other in self.served if other.name == served.name]
        return served.name if len(alike) == 1 else served.names[0]

    def _list(self) -> str:
        return ", ".join(self.identity(served) for served in self.served)


def names_of(model: str) -> tuple[str, ...]:
    """What a model may be called before it is loaded: a hub id, or a path's last part."""
    path = Path(model).expanduser()
    if not path.exists():
        return (model,)
    return (path.resolve().stem if path.is_file() else path.resolve().name,)


def with_aliases(models: Iterable[str], aliases: Mapping[str, str]) -> list[tuple[str, tuple[str, ...]]]:
    """Each model with its aliases; RequestError for an alias of what is not served.

    `aliases` maps a name to a model as it was given, or to its path's last part; to "" where there is only one.
    """
    given = list(models)
    owners: dict[str, list[str]] = {model: [] for model in given}
    if len(owners) != len(given):
        raise RequestError("a model was named twice: each is served once")
    for alias, target in aliases.items():
        matching = [model for model in given if target in (model, *names_of(model)) or (not target and len(given) == 1)]
        if len(matching) != 1:
            raise RequestError(f"--alias {alias}={target}: there is no such model; there are {', '.join(given)}")
        owners[matching[0]].append(alias)
    return [(model, tuple(owners[model])) for model in given]


def _uncased(name: str) -> str:
    """Lower case, without owner: Qwen/Qwen3-0.6B-GGUF -> qwen3-0.6b-gguf."""
    return name.lower().strip().rsplit("/", 1)[-1]


def _plain(name: str) -> str:
    """Without form, too: Qwen/Qwen3-0.6B-GGUF:Q4_K_M, qwen3:0.6b -> qwen3-0.6b."""
    name = _uncased(name).removesuffix(".gguf")
    while (short := _FORM.sub("", name)) != name:
        name = short
    return name.replace(":", "-").replace("_", "-")


def _familiar(name: str) -> str:
    """Without Qwen's generation: qwen-0.6b."""
    return _QWEN.sub("qwen-", _plain(name))
