"""The engines there are to choose from, what each can do and whether it is installed; none is imported here."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from edgeqwen.errors import RequestError

KEPT_SEQUENCES = 12  # conversations that wait for their next turn, as far as the pool holds them


@dataclass(frozen=True, slots=True)
class Engine:
    """One engine: `name` is its key in edgeqwen.backends.BACKENDS, `format` the one of an artifact that it reads."""

    name: str
    format: str
    module: str  # that Python imports
    distribution: str  # that pip installs
    extra: str  # of our own package
    kv_types: tuple[str, ...]  # of its cache; the first is the default
    gpu: bool = False  # whether layers can go to one
    compiled: bool = False  # by pip, where it is installed: there are no wheels
    pooled: bool = False  # its sequences share one pool of KV cells: more of them cost nothing
    aside: bool = False  # a second one over the same weights computes prompts beside running answers

    @property
    def pip_line(self) -> str:
        return f"pip install 'edgeqwen[{self.extra}]'"

    def sequences(self, parallel: int | None) -> int:
        """How many a server needs for answers side by side, and beside them for prefixes that are kept."""
        return 1 if parallel is None else parallel + KEPT_SEQUENCES * self.pooled

    @property
    def installed(self) -> bool:
        """Whether Python finds it; a library that does not load shows only when it is used."""
        try:
            return find_spec(self.module) is not None
        except (ImportError, ValueError):  # a broken entry of sys.modules or sys.path
            return False

    @property
    def version(self) -> str | None:
        """What pip says is installed."""
        try:
            return version(self.distribution)
        except PackageNotFoundError:
            return None


# In the order in which they are taken where nothing else decides.
ENGINES = {
    engine.name: engine
    for engine in (
        Engine(
            "llamacpp",
            "gguf",
            "llama_cpp",
            "llama-cpp-python",
            "llama",
            ("f16", "q8_0", "f32"),
            gpu=True,
            compiled=True,
            pooled=True,
            aside=True,
        ),
        Engine("ort", "onnx", "onnxruntime", "onnxruntime", "onnx", ("f32",)),
    )
}
AUTO = "auto"


def engine_named(name: str) -> Engine:
    """RequestError lists the names there are."""
    if name not in ENGINES:
        raise RequestError(f"engine {name!r} is not one of {', '.join((AUTO, *ENGINES))}")
    return ENGINES[name]


def installed_engines() -> tuple[str, ...]:
    """Names of the engines that Python finds, without importing one."""
    return tuple(name for name, engine in ENGINES.items() if engine.installed)
