"""The command `serve`: an OpenAI-compatible server on this machine."""

from __future__ import annotations

import json
import logging
import math
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeqwen.cli.terminal import escaped

if TYPE_CHECKING:
    from edgeqwen.server.run import Address, ServerSettings


class Seconds(click.FloatRange):
    """A range that nan is not in."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        seconds = float(super().convert(value, param, ctx))
        if math.isnan(seconds):
            self.fail(f"{value!r} is not in the range {self._describe_range()}.", param, ctx)
        return seconds


@click.command(short_help="Serve models to OpenAI's clients.")
@click.argument("artifacts", metavar="ARTIFACT...", nargs=-1, required=True)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; others need a token.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0: any that is free.")
@click.option("--parallel", type=click.IntRange(1, 32), default=4, show_default=True, help="Answers side by side.")
@click.option("--queue", "waiting_max", type=click.IntRange(0, 10000), default=64, show_default=True,
              help="Requests beyond these that may wait; more get 429.")  # fmt: skip
@click.option(
    "--api-key-file", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Tokens, one a line."
)
@click.option("--alias", "aliases", multiple=True, metavar="NAME=ARTIFACT", help="Another name for a model.")
@click.option("--context", "context_length", type=int, help="Tokens of prompt and answer together.  [default: 4096]")
@click.option("--threads", type=int, help="[default: the fast physical cores]")
@click.option("--engine", default="auto", show_default=True, help="llamacpp or ort; auto takes the best for a model.")
@click.option("--kv-type", type=click.Choice(["f16", "q8_0", "f32"]), help="Of the cache.  [default: f16; ort: f32]")
@click.option(
    "--gpu-layers", type=click.IntRange(min=-1), help="Layers on the GPU; -1 for all.  [default: what fits there]"
)
@click.option("--type", "quant", help="Type to convert to on first use of a hub id.  [default: q4_k_m, for ort int4]")
@click.option("--offline", is_flag=True, help="Never ask the network.")
@click.option("--force", is_flag=True, help="Load what does not fit by the arithmetic of `edgeqwen plan`.")
@click.option("--trust-template", is_flag=True, help="Accept a chat template that edgeqwen does not know.")
@click.option(
    "--no-isolate", is_flag=True, help="One process instead of two: less memory, and a crash ends the server."
)
@click.option("--cors", "origins", multiple=True, metavar="ORIGIN", help="Let this site's pages ask the server.")
@click.option("--allowed-host", "allowed_hosts", multiple=True, metavar="NAME", help="A name the server goes by.")
@click.option("--max-seconds", "answer_s", type=Seconds(1, 86400), help="An answer is cut after these.")
@click.option("--drain", "drain_s", type=Seconds(0, 3600), default=30, show_default=True,
              help="Seconds that running answers have when the server is stopped.")  # fmt: skip
@click.option("--log-json", is_flag=True, help="One JSON object a line on stderr.")
@click.option("--verbose", is_flag=True, help="Log more.")
def serve(artifacts: tuple[str, ...], **options: Any) -> None:
    """Serve ARTIFACTs to OpenAI's clients until Ctrl-C or SIGTERM.

    ARTIFACT is a folder, a GGUF file, a hub id (converted on first use) or `nano`. Clients need the base_url that is
    printed; without --api-key-file any api_key will do. /docs lists what there is, /metrics is for Prometheus.

    \b
    edgeqwen serve ./qwen3-0.6b-q4_k_m
    edgeqwen serve ./qwen3-0.6b-q4_k_m ./qwen3-1.7b-q4_k_m --alias fast=qwen3-0.6b-q4_k_m
    edgeqwen serve nano --host 0.0.0.0 --api-key-file ~/edgeqwen.keys
    """
    _need_packages()
    from edgeqwen.cli.progress import Progress
    from edgeqwen.server.logs import log_to
    from edgeqwen.server.run import serve as run

    log_to(sys.stderr, as_json=options["log_json"], level=logging.DEBUG if options["verbose"] else logging.INFO)
    settings = _settings(artifacts, options)
    with_key = bool(settings.access.keys)
    with Progress() as progress:
        run(settings, progress=progress, ready=lambda address: click.echo(_greeting(address, with_key=with_key)))


def _need_packages() -> None:
    """A usage error with the pip line where the server's packages are not installed."""
    from importlib.util import find_spec

    missing = [name for name in ("starlette", "uvicorn", "prometheus_client") if find_spec(name) is None]
    if missing:
        raise click.ClickException(f"{missing[0]} is not installed: pip install 'edgeqwen[serve]'")


def _settings(artifacts: tuple[str, ...], options: dict[str, Any]) -> ServerSettings:
    from edgeqwen.server.request import EngineSettings
    from edgeqwen.server.run import ServerSettings
    from edgeqwen.server.security import Access, read_keys

    keys = read_keys(options["api_key_file"]) if options["api_key_file"] else ()
    models = tuple(
        EngineSettings(
            model=artifact,
            type=options["quant"],
            context_length=options["context_length"],
            threads=options["threads"],
            kv_type=options["kv_type"],
            gpu_layers=options["gpu_layers"],
            engine=options["engine"],
            offline=options["offline"],
            trust_template=options["trust_template"],
            force=options["force"],
            parallel=options["parallel"],
            waiting_max=options["waiting_max"],
        )
        for artifact in artifacts
    )
    return ServerSettings(
        models=models,
        aliases=_aliases(options["aliases"]),
        host=options["host"],
        port=options["port"],
        access=Access(keys, options["allowed_hosts"], options["origins"]),
        isolate=not options["no_isolate"],
        answer_s=options["answer_s"],
        drain_s=options["drain_s"],
    )


def _aliases(pairs: tuple[str, ...]) -> dict[str, str]:
    aliases = {}
    for pair in pairs:
        name, _, artifact = pair.partition("=")
        if not name.strip():
            raise click.UsageError(f"--alias {pair}: write NAME=ARTIFACT, or NAME where one model is served")
        aliases[name.strip()] = artifact.strip()
    return aliases


def _greeting(address: Address, *, with_key: bool) -> str:
    """Where the server is, and two lines to try it with."""
    url, model = address.base_url, address.models[0]
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "Hello"}]})
    headers = ["Content-Type: application/json", *(["Authorization: Bearer $TOKEN"] if with_key else [])]
    given = " ".join(f'-H "{header}"' for header in headers)
    key = "your token" if with_key else "EMPTY"
    lines = (
        f"base_url: {url}   models: {', '.join(address.models)}   (Ctrl-C ends it)",
        f"  curl {url}/chat/completions {given} -d {shlex.quote(body)}",
        f'  python: OpenAI(base_url="{url}", api_key="{key}").chat.completions.create(model="{model}", ...)',
    )
    return "\n".join(map(escaped, lines))
