"""A model id in, a folder of the shared cache out: what a conversion needs and nothing else, online or not.

Environment, read at each call: HF_ENDPOINT (a mirror), HF_HUB_CACHE or HF_HOME (the cache), HF_HUB_OFFLINE, HF_TOKEN.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from converters.hub_file import RemoteFile, Repository, fetch_file, transport_errors
from converters.safetensors import INDEX, SINGLE, shard_names
from converters.tokenizer_files import TEMPLATE, TOKENIZER, TOKENIZER_CONFIG
from edgeqwen.errors import CheckpointError, DownloadError
from edgeqwen.strict_json import CONFIG_BYTES_MAX

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_HUB: Final = "https://huggingface.co"
_REQUIRED = ("config.json", TOKENIZER, TOKENIZER_CONFIG)
_OPTIONAL = ("generation_config.json", TEMPLATE, "README.md")
_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
_MODEL_ID = re.compile(r"(?!.*(--|\.\.))[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)
_REVISION = re.compile(r"(?!.*\.\.)[A-Za-z0-9][\w./-]{0,199}", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_DIGEST = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")
_TIMEOUT_S = 10.0
_SPARE_BYTES = 64 << 20  # left free on the disk of the cache


@dataclass(frozen=True, slots=True)
class _Source:
    """Where a model comes from and where it goes to."""

    model_id: str
    revision: str
    endpoint: str
    cache: Path

    @property
    def folder(self) -> Path:
        return self.cache / f"models--{self.model_id.replace('/', '--')}"

    @property
    def reference(self) -> Path:
        return self.folder / "refs" / self.revision


def fetch(
    model_id: str,
    *,
    revision: str | None = None,
    offline: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Return the folder of a complete checkpoint, downloading what is lacking; `progress` gets (done, total) bytes.

    An interrupted download goes on where it ended, in this call or the next; every file must hash to what the hub's
    listing says. DownloadError, of one line, for everything that cannot be had.
    """
    source = _source(model_id, revision)
    if offline or _is_set("HF_HUB_OFFLINE"):
        return _cached(source) or _refuse_offline(source)
    with _translated(source):
        token = _token(source.endpoint)
        repository, files = _listing(source, token)
        _check_space(repository, files)
        _fetch_files(source, repository, files, token, progress)
        if repository.commit not in {source.revision, _referred(source)}:
            source.reference.parent.mkdir(parents=True, exist_ok=True)
            source.reference.write_text(repository.commit)  # only now: an offline call finds what is complete
    return repository.snapshot


def fetch_config(model_id: str, *, offline: bool = False) -> Path:
    """Return the config.json of a model, of the cache or downloaded alone: nothing else of it is fetched.

    DownloadError as of `fetch`.
    """
    source = _source(model_id, None)
    if offline or _is_set("HF_HUB_OFFLINE"):
        found = source.folder / "snapshots" / _referred(source) / "config.json"
        if not _referred(source) or not found.is_file():
            raise DownloadError(
                f"{model_id}: no config.json of it in {source.cache}, and offline; name a published model such as "
                "Qwen/Qwen3-0.6B, or the folder of a checkpoint"
            )
        return found
    with _translated(source):
        token = _token(source.endpoint)
        commit, siblings = _asked(source, token)
        if "config.json" not in siblings:
            raise DownloadError(f"{model_id} on {source.endpoint} has no config.json; found {sorted(siblings)!r:.200}")
        file = _remote_file(siblings["config.json"])
        if file.size > CONFIG_BYTES_MAX:
            raise DownloadError(f"{model_id}: config.json has {file.size} bytes; at most {CONFIG_BYTES_MAX} are read")
        repository = Repository(source.folder, commit)
        _fetch_files(source, repository, [file], token, None)
        if not _referred(source):  # an older checkpoint that is complete stays what an offline call finds
            source.reference.parent.mkdir(parents=True, exist_ok=True)
            source.reference.write_text(commit)
    return repository.snapshot / "config.json"


def _source(model_id: str, revision: str | None) -> _Source:
    if not _MODEL_ID.fullmatch(model_id):
        raise DownloadError(f"{model_id!r:.200} is no model id; expected ORGANISATION/NAME, such as Qwen/Qwen3-0.6B")
    revision = revision or "main"
    if not _REVISION.fullmatch(revision):
        raise DownloadError(f"{revision!r:.200} is no revision; expected a branch, a tag or a commit of {model_id}")
    endpoint = (os.environ.get("HF_ENDPOINT") or _HUB).rstrip("/")
    parts = urlsplit(endpoint)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.username or parts.password:
        raise DownloadError(f"HF_ENDPOINT: expected http(s)://HOST, no user name; its scheme is {parts.scheme!r:.40}")
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    cache = Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub").expanduser().absolute()
    return _Source(model_id, revision, endpoint, cache)


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "").upper() in {"1", "ON", "YES", "TRUE"}


def _cached(source: _Source) -> Path | None:
    """Return the snapshot in the cache when it is complete."""
    commit = _referred(source) or source.revision
    snapshot = source.folder / "snapshots" / commit
    if not _COMMIT.fullmatch(commit) or not all((snapshot / name).exists() for name in _REQUIRED):
        return None
    try:
        weights, _ = shard_names(snapshot)
    except CheckpointError:
        return None
    return snapshot if all((snapshot / name).exists() for name in weights) else None


def _referred(source: _Source) -> str:
    """Return the commit that the revision was when it was fetched last; empty when it never was."""
    return source.reference.read_text(errors="replace").strip() if source.reference.is_file() else ""


def _refuse_offline(source: _Source) -> Path:
    raise DownloadError(
        f"{source.model_id}: no complete copy of revision {source.revision} in {source.cache}, and offline; fetch it "
        "once with a network, or give the folder of a checkpoint"
    )


def _token(endpoint: str) -> str | bool:
    """Return the token to send, or False for none.

    One that was stored by a login goes to huggingface.co alone, HF_TOKEN also to a mirror that the same environment
    names; neither goes over plain HTTP to another machine.
    """
    from huggingface_hub import get_token  # noqa: PLC0415 - half a second

    parts = urlsplit(endpoint)
    if endpoint == _HUB:
        return get_token() or False
    is_private = parts.scheme == "https" or parts.hostname in {"localhost", "127.0.0.1", "::1"}
    return os.environ.get("HF_TOKEN") or False if is_private else False


def _listing(source: _Source, token: str | bool) -> tuple[Repository, list[RemoteFile]]:
    """Ask the hub for the commit and the files that are needed of it, small ones first."""
    commit, siblings = _asked(source, token)
    files = [_remote_file(siblings[name]) for name in _wanted(source, siblings)]
    return Repository(source.folder, commit), sorted(files, key=lambda file: file.size)


def _asked(source: _Source, token: str | bool) -> tuple[str, dict[str, Any]]:
    """Ask the hub for the commit and what it says of every file, by name."""
    from huggingface_hub import HfApi  # noqa: PLC0415

    api = HfApi(endpoint=source.endpoint, token=token)
    try:
        info = api.model_info(source.model_id, revision=source.revision, files_metadata=True, timeout=_TIMEOUT_S)
    except (ValueError, KeyError, TypeError, AttributeError):  # another page than a hub's, as hotel networks give
        raise DownloadError(f"{source.endpoint} does not answer as a hub does; is HF_ENDPOINT right?") from None
    if not isinstance(info.sha, str) or not _COMMIT.fullmatch(info.sha):
        raise DownloadError(f"{source.endpoint} gives {info.sha!r:.80} as the commit of {source.model_id}: not a hub?")
    return info.sha, {sibling.rfilename: sibling for sibling in info.siblings or ()}


def _wanted(source: _Source, names: Iterable[str]) -> list[str]:
    """Choose by an allow-list: never code, pickles or names with a folder in them."""
    names = set(names)
    weights = [SINGLE] if SINGLE in names else sorted(name for name in names if _SHARD.fullmatch(name) or name == INDEX)
    missing = [name for name in _REQUIRED if name not in names] + ([] if weights else [SINGLE])
    if missing:
        raise DownloadError(
            f"{source.model_id} on {source.endpoint} has no {', '.join(missing)}; found {sorted(names)!r:.200}; "
            "a repository of safetensors with a tokenizer.json would work"
        )
    return [*_REQUIRED, *(name for name in _OPTIONAL if name in names), *weights]


def _remote_file(sibling: Any) -> RemoteFile:
    """Check a RepoSibling of huggingface_hub."""
    name, size = sibling.rfilename, sibling.size
    digest = str(sibling.lfs.sha256 if sibling.lfs else sibling.blob_id)
    if not isinstance(size, int) or size < 0 or not _DIGEST.fullmatch(digest):
        raise DownloadError(f"{name}: the hub gives size {size!r:.40} and hash {digest!r:.80}; try another mirror")
    return RemoteFile(name, size, digest)


def _check_space(repository: Repository, files: list[RemoteFile]) -> None:
    needed = sum(repository.missing_bytes(file) for file in files)
    place = next(folder for folder in repository.folder.parents if folder.exists())
    free = shutil.disk_usage(place).free
    if needed and needed + _SPARE_BYTES > free:
        raise DownloadError(
            f"{place}: {needed / 1e9:.2f} GB are to come and {free / 1e9:.2f} GB are free; make room, or set "
            "HF_HUB_CACHE to another disk"
        )


def _fetch_files(
    source: _Source,
    repository: Repository,
    files: list[RemoteFile],
    token: str | bool,
    progress: Callable[[int, int], None] | None,
) -> None:
    from huggingface_hub import hf_hub_url  # noqa: PLC0415
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # noqa: PLC0415

    total, done = sum(file.size for file in files), 0

    def report(present: int) -> None:
        if progress:
            progress(done + present, total)

    for file in files:
        url = hf_hub_url(source.model_id, file.name, revision=repository.commit, endpoint=source.endpoint)
        headers = build_hf_headers(token=token, library_name="edgeqwen") | {"Accept-Encoding": "identity"}
        fetch_file(repository, file, url, headers, report)
        done += file.size
    report(0)


@contextmanager
def _translated(source: _Source) -> Iterator[None]:
    """Turn what huggingface_hub and its HTTP library raise into a DownloadError."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # read when huggingface_hub is imported
    from huggingface_hub.errors import HfHubHTTPError  # noqa: PLC0415

    try:
        with _silent():
            yield
    except HfHubHTTPError as error:
        raise DownloadError(_refusal(source, error)) from None
    except transport_errors() as error:
        raise DownloadError(_breakdown(source, error)) from None


@contextmanager
def _silent() -> Iterator[None]:
    """Keep huggingface_hub from drawing bars and writing warnings; a library does not print."""
    from huggingface_hub import utils  # noqa: PLC0415

    tools: Any = utils  # its functions are exported without being listed
    had_bars, verbosity = not tools.are_progress_bars_disabled(), tools.logging.get_verbosity()
    tools.disable_progress_bars()
    tools.logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        tools.logging.set_verbosity(verbosity)
        if had_bars:
            tools.enable_progress_bars()


def _refusal(source: _Source, error: Any) -> str:
    """Say what an HTTP status means. The error's own text is left out: it may carry signed addresses."""
    status, kind = error.response.status_code, type(error).__name__
    where = f"{source.model_id} on {source.endpoint}"
    if kind == "GatedRepoError":
        return (
            f"{where} is gated ({status}): accept its terms there in a browser, then set HF_TOKEN to a token of yours"
        )
    if kind == "RevisionNotFoundError":
        return f"{where} has no revision {source.revision} ({status})"
    if status in {401, 403, 404}:
        return (
            f"{where} is not there, or not for you to see ({status}): check the name; a private model needs HF_TOKEN; "
            "HF_ENDPOINT names another hub"
        )
    if status == 429:
        return f"{where}: too many requests ({status}): wait some minutes and run again; what came is kept"
    return f"{where}: the hub answered {status}: run again later, or set HF_ENDPOINT to a mirror; what came is kept"


def _breakdown(source: _Source, error: BaseException) -> str:
    """Say what a failed connection or a failed disk means."""
    kinds = {base.__name__ for base in type(error).__mro__}
    if isinstance(error, OSError) and error.errno and not isinstance(error, (ConnectionError, TimeoutError)):
        return f"{error.filename or source.cache}: {error.strerror}: make room or set HF_HUB_CACHE; what came is kept"
    if kinds & {"TimeoutException", "Timeout"}:
        fault = "did not answer in time"
    elif kinds & {"ConnectError", "ConnectionError", "ProxyError"}:
        fault = "cannot be reached"
    else:
        fault = f"broke the transfer off ({type(error).__name__})"
    others = "set HF_ENDPOINT to a mirror, or give the folder of a checkpoint"
    if _cached(source):
        others = f"work offline with the copy in {source.cache}, {others}"
    return f"{source.model_id}: {source.endpoint} {fault}: run again (what came is kept), {others}"
