"""A name -> a model on disk: a folder, a GGUF file, `nano`, a hub id; the one library module that may convert."""

from __future__ import annotations

import hashlib
import math
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgeqwen.artifact import Artifact, open_artifact
from edgeqwen.engines import AUTO, engine_named, installed_engines
from edgeqwen.errors import ArtifactBusyError, ArtifactError, EngineMissingError, RequestError
from edgeqwen.folders import cache_folder
from edgeqwen.gguf import GgufFile, open_gguf, shape_of
from edgeqwen.manifest import MANIFEST
from edgeqwen.memory_need import Weights, onnx_weights, weights_of
from edgeqwen.onnx_file import check_graph
from edgeqwen.template import ChatTemplate, find_template, is_known
from edgeqwen.tokenizer import Tokenizer
from edgeqwen.types import ModelShape

if TYPE_CHECKING:
    from converters.report import ConvertReport

NANO = Path(__file__).parent / "nano"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
END_TOKENS = ("<|im_end|>", "<|endoftext|>")
POLL_S = 0.1
OWN = "own"
EXPORTERS = (OWN, "optimum")
Progress = Callable[[int, int, str], None]  # done, total, what is being done


@dataclass(frozen=True, slots=True)
class Found:
    """A model on disk, checked and ready for an engine."""

    name: str
    weights_path: Path
    shape: ModelShape
    weights: Weights
    tokenizer: Tokenizer
    template: ChatTemplate
    end_ids: frozenset[int]
    sampling: Mapping[str, float]


def locate(
    name: str | Path,
    *,
    type: str | None = None,
    engine: str = AUTO,
    offline: bool = False,
    trust_template: bool = False,
    progress: Progress | None = None,
) -> Path:
    """The artifact's folder or the GGUF file behind a name; converts `nano` and hub ids into the cache on first use.

    They become what `engine` reads, and of "auto" what the first engine does that is installed. RequestError for a name
    that is none of these, DownloadError and CheckpointError where a hub id fails.
    """
    given: object = name
    if not isinstance(given, str | Path) or given == "":
        raise RequestError(f"a model's name is a text or a path, not {name!r}")
    text, formats = str(name), formats_of(engine)
    kind, path = type_name(type, formats), Path(name).expanduser()

    def cached(model: str) -> Path:
        target = cache_folder() / artifact_name(model, kind, formats)

        def make() -> None:
            convert(
                text, target, type=kind, formats=formats, trust_template=trust_template, offline=offline,
                progress=progress,
            )  # fmt: skip

        return _cached(target, make, progress)

    if text == "nano":
        return cached(_cached_name(text))
    if path.is_dir():
        return _artifact_folder(path)
    if path.suffix == ".onnx" and path.is_file():
        raise RequestError(f"{path} is the graph alone: give the artifact's folder, {path.parent}")
    if path.is_file():
        return path
    if _is_hub_id(text):
        return cached(_cached_name(text))
    raise RequestError(
        f"no model {text!r}: give an artifact's folder, a GGUF file, a hub id such as Qwen/Qwen3-0.6B, or nano"
    )


def locate_converted(name: str) -> Path:
    """Like `locate`, but only what is on disk already; RequestError for `nano` or a hub id that was never converted.

    Of several types it is the one that `locate` gives, or else the first by name.
    """
    if name != "nano" and (Path(name).expanduser().exists() or not _is_hub_id(name)):
        return locate(name, offline=True)
    model, formats = _cached_name(name), formats_of(AUTO)
    usual = cache_folder() / artifact_name(model, type_name(None, formats), formats)
    if (usual / MANIFEST).is_file():
        return usual
    folders = sorted(path.parent for path in cache_folder().glob(f"{model.lower()}-*/{MANIFEST}"))
    # Qwen3-0.6B-Base is another model: behind this one's name comes a type, which has no hyphen, and perhaps -onnx.
    found = [path for path in folders if "-" not in path.name.lower()[len(model) + 1 :].removesuffix("-onnx")]
    if not found:
        raise RequestError(f"{name} is not in the cache: edgeqwen run {name} puts it there")
    return found[0]


def _is_hub_id(name: str) -> bool:
    return HUB_ID.fullmatch(name) is not None and not name.endswith(".gguf")


def _artifact_folder(path: Path) -> Path:
    if (path / MANIFEST).is_file():
        return path
    if (path / "config.json").is_file():
        raise RequestError(f"{path} is a checkpoint: edgeqwen convert {path} makes an artifact of it")
    raise RequestError(f"{path} is not an artifact: there is no {MANIFEST} in it")


def find(path: Path, *, format: str = "gguf", verify: bool = False, trust_template: bool = False) -> Found:
    """Open what `locate` found; ArtifactError for a damaged file, TemplateError for a template nobody trusts.

    `format` is the one that the chosen engine reads, of those an artifact holds.
    """
    if path.is_dir():
        artifact = open_artifact(path, verify="full" if verify else "quick")
        return _from_artifact(artifact, format, trust_template=trust_template)
    with open_gguf(path) as file:
        return _from_gguf(path, file, trust_template=trust_template)


def formats_of(engine: str) -> tuple[str, ...]:
    """What an engine reads; "auto" is the first that is installed, and llamacpp where none is."""
    name = next(iter(installed_engines()), "llamacpp") if engine == AUTO else engine
    return (engine_named(name).format,)


def artifact_name(model: str, type: str, formats: tuple[str, ...] = ("gguf",)) -> str:
    """The folder that a model is converted into: qwen3-0.6b-q4_k_m; -int4-onnx for ONNX, -int4-gguf-onnx for both."""
    return "-".join(part for part in (model.lower(), type, *(() if formats == ("gguf",) else formats)) if part)


def convert(  # noqa: PLR0913 - what one may say of converting
    name: str,
    out: Path,
    *,
    type: str | None = None,
    formats: tuple[str, ...] = ("gguf",),
    threads: int | None = None,
    trust_template: bool = False,
    offline: bool = False,
    revision: str | None = None,
    exporter: str = OWN,
    compare: bool = True,
    calibrate: bool = False,
    progress: Progress | None = None,
) -> ConvertReport:
    """Make an artifact in `out` of a checkpoint's folder, a hub id or `nano`; nothing is left where that fails.

    `exporter` "optimum" traces an ONNX graph with torch, for families that have no writer here: fp32 alone. `compare`
    runs a 4-bit ONNX graph and computes exactly what rounded activations spoil; without it converting is quicker.
    `calibrate` rounds an int4 ONNX graph for what its weights are multiplied by, which takes minutes.
    """
    from converters.build import convert_checkpoint  # noqa: PLC0415
    from converters.checkpoint import open_checkpoint  # noqa: PLC0415 - the one place where running meets converting
    from converters.onnx_plan import CALIBRATING  # noqa: PLC0415

    folder = NANO if name == "nano" else Path(name).expanduser()
    _check_exporter(exporter, type, formats, folder)
    if "onnx" in formats and find_spec("onnx") is None:
        raise EngineMissingError("writing ONNX graphs needs the package onnx: pip install 'edgeqwen[onnx]'")
    if calibrate and (folder.is_file() or exporter != OWN):
        raise RequestError("only what is made of a checkpoint by edgeqwen's own exporter can be calibrated")
    if folder.is_file():
        return _convert_gguf(
            folder, out, type=type, formats=formats, threads=threads, trust_template=trust_template, compare=compare,
            progress=progress,
        )  # fmt: skip
    if not folder.exists() and _is_hub_id(name):
        folder = _download(name, revision=revision, offline=offline, progress=progress)
    if exporter != OWN:
        return _convert_traced(folder, out, model_name(name), trust_template=trust_template, progress=progress)
    kind = type_name(type, formats)
    stage = f"converting {model_name(name)} to {kind}"
    stages = {CALIBRATING: f"{CALIBRATING} {model_name(name)}"}
    shown = (lambda done, total, what: progress(done, total, stages.get(what, stage))) if progress else None
    with open_checkpoint(folder, name=model_name(name)) as checkpoint:
        template = checkpoint.chat_template
        return convert_checkpoint(
            checkpoint, out, type=kind, formats=formats, threads=threads, trust_template=trust_template,
            template_known=template is None or is_known(template), compare=compare, calibrate=calibrate,
            progress=shown,
        )  # fmt: skip


def _check_exporter(exporter: str, type: str | None, formats: tuple[str, ...], source: Path) -> None:
    if exporter not in EXPORTERS:
        raise RequestError(f"exporter {exporter!r} is not one of {', '.join(EXPORTERS)}")
    if exporter != OWN and (formats != ("onnx",) or type not in (None, "fp32") or source.is_file()):
        raise RequestError(f"{exporter} writes ONNX graphs of checkpoints in fp32 and nothing else: --to onnx alone")


def _convert_traced(
    folder: Path, out: Path, name: str, *, trust_template: bool, progress: Progress | None
) -> ConvertReport:
    """A checkpoint of any family through torch and optimum."""
    from converters.to_onnx_optimum import Wish, convert_with_optimum  # noqa: PLC0415

    return convert_with_optimum(folder, Path(out), Wish(name, is_known, trust_template=trust_template), progress)


def _convert_gguf(
    path: Path,
    out: Path,
    *,
    type: str | None,
    formats: tuple[str, ...],
    threads: int | None,
    trust_template: bool,
    compare: bool,
    progress: Progress | None,
) -> ConvertReport:
    """A GGUF file's weights and words as an ONNX artifact."""
    if formats != ("onnx",):
        raise RequestError(f"{path} is a file; a GGUF file can be converted --to onnx, and run as it is")
    from converters.from_gguf import GgufFacts, convert_gguf  # noqa: PLC0415

    with open_gguf(path) as file:
        found = _from_gguf(path, file, trust_template=trust_template)
        source = str(file.metadata["tokenizer.chat_template"])
    facts = GgufFacts(
        name=found.name,
        tokenizer_json=found.tokenizer.to_json(),
        chat_template=source,
        trusted_template=not is_known(source),
        special_ids=dict(found.tokenizer.added),
        end_ids=tuple(sorted(found.end_ids)),
        sampling=found.sampling,
    )
    shown = (lambda done, total, _tensor: progress(done, total, f"converting {path.name}")) if progress else None
    return convert_gguf(path, out, facts, type=type, threads=threads, compare=compare, progress=shown)


def model_name(name: str) -> str:
    """A hub id's last part; `nano`; the folder's own name where a path such as `.` was given."""
    path = Path(name).expanduser()
    return path.resolve().name if path.exists() and name != "nano" else name.rsplit("/", 1)[-1]


def type_name(name: str | None, formats: tuple[str, ...] = ("gguf",)) -> str:
    """The type's own name in lower case: for GGUF int4 is q4_k_m; RequestError lists what there is."""
    if not isinstance(name, str | None):
        raise RequestError(f"a type is a text such as q4_k_m, not {name!r}")
    from converters.build import resolve_type  # noqa: PLC0415

    return resolve_type(name, formats)


def _download(model_id: str, *, revision: str | None, offline: bool, progress: Progress | None) -> Path:
    from converters.hub import fetch  # noqa: PLC0415

    shown = (lambda done, total: progress(done, total, f"downloading {model_id}")) if progress else None
    return fetch(model_id, revision=revision, offline=offline, progress=shown)


def _cached(target: Path, make: Callable[[], None], progress: Progress | None) -> Path:
    """The cache's artifact, made now if it is not there; where another run makes it, its end is waited for."""
    while not (target / MANIFEST).is_file():
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ArtifactError(f"{target.parent}: cannot be made ({error}); EDGEQWEN_HOME names another") from None
        try:
            make()
        except ArtifactBusyError:
            if progress is not None:
                progress(0, 1, "waiting for another run that converts the same model")
            time.sleep(POLL_S)
    return target


def _cached_name(name: str) -> str:
    """What the cache calls `nano`, of which another release's weights get another folder, and a hub id."""
    if name != "nano":
        return name.replace("/", "--")
    return f"nano-{hashlib.sha256((NANO / 'model.safetensors').read_bytes()).hexdigest()[:12]}"


def _from_artifact(artifact: Artifact, format: str, *, trust_template: bool) -> Found:
    manifest = artifact.manifest
    if format not in manifest.formats:
        raise ArtifactError(f"{artifact.path}: holds {', '.join(manifest.formats)} and this engine reads {format}")
    if manifest.chat_template is None:
        raise ArtifactError(f"{artifact.path}: holds no chat template; this is a base model, not one to talk with")
    template = artifact.file("chat_template").read_text(encoding="utf-8")
    weights_path = artifact.file(format)
    if format == "gguf":
        with open_gguf(weights_path) as file:
            weights, shape = weights_of(file.tensors.values()), shape_of(file)
        if shape != manifest.shape:
            raise ArtifactError(f"{artifact.path}: manifest.json and {weights_path.name} are of different shapes")
    else:
        weights = onnx_weights(check_graph(artifact).tensors)
    return Found(
        name=manifest.name,
        weights_path=weights_path,
        shape=manifest.shape,
        weights=weights,
        tokenizer=Tokenizer.from_json(artifact.file("tokenizer").read_bytes()),
        template=find_template(template, trusted=manifest.trusted_template or trust_template),
        end_ids=frozenset(manifest.end_ids),
        sampling=manifest.sampling,
    )


def _from_gguf(path: Path, file: GgufFile, *, trust_template: bool) -> Found:
    metadata = file.metadata
    source = metadata.get("tokenizer.chat_template")
    if not isinstance(source, str):
        raise ArtifactError(f"{path}: holds no chat template; this is a base model, not one to talk with")
    tokenizer = Tokenizer.from_gguf(metadata)
    named = (tokenizer.id(token) for token in END_TOKENS)
    end_ids = {i for i in (*named, metadata.get("tokenizer.ggml.eos_token_id")) if isinstance(i, int)}
    prefix = "general.sampling."
    sampling = {k.removeprefix(prefix): v for k in metadata if k.startswith(prefix) and (v := metadata[k]) is not None}
    renamed = {"temp": "temperature", "penalty_repeat": "repetition_penalty"}
    return Found(
        name=str(metadata.get("general.name") or path.stem),
        weights_path=path,
        shape=shape_of(file),
        weights=weights_of(file.tensors.values()),
        tokenizer=tokenizer,
        template=find_template(source, trusted=trust_template),
        end_ids=frozenset(end_ids),
        sampling={
            renamed.get(k, k): _decimal(v)
            for k, v in sampling.items()
            if isinstance(v, int | float) and math.isfinite(v)
        },
    )


def _decimal(value: float) -> float:
    """The shortest decimal of a 32-bit float: what 0.95 was before GGUF stored it."""
    return float(str(np.float32(value)))
