"""The command line: a command's module is imported when it runs, so that --help answers at once."""

from __future__ import annotations

import importlib
import sys

import click

# name -> what --help says of it; the command is the function of that name in edgeqwen/cli/<name>.py
COMMANDS = {
    "convert": "Turn a checkpoint into an artifact: quantized, verified, ready to run.",
    "run": "Ask a model one question, or talk with it.",
    "inspect": "Say what is in an artifact, a GGUF file or a checkpoint, and what memory it needs.",
    "demo": "Convert the embedded model, ask it three questions and print the speeds.",
    "completion": "Print the completion script for a shell.",
}


class _Commands(click.Group):
    """A group that knows its commands' names and imports one when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(importlib.import_module(f"edgeqwen.cli.{cmd_name}"), cmd_name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in COMMANDS:
            ctx.fail(f"no command {args[0]!r}; there are {', '.join(COMMANDS)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def _version(ctx: click.Context, _option: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        from importlib.metadata import version

        click.echo(f"edgeqwen {version('edgeqwen')}")
        ctx.exit()


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "EDGEQWEN"})
@click.option(
    "--version", is_flag=True, callback=_version, expose_value=False, is_eager=True, help="Print the version."
)
def edgeqwen() -> None:
    """Run Qwen models on small devices, offline.

    \b
    edgeqwen convert Qwen/Qwen3-0.6B                  # -> ./qwen3-0.6b-q4_k_m/
    edgeqwen run ./qwen3-0.6b-q4_k_m "Why is the sky blue?"
    edgeqwen run nano                                 # the embedded demo model; no network needed
    """


def main() -> None:
    """Run the command line: exit 0, 1 with one line on stderr, 2 for a usage error, 130 for Ctrl-C."""
    from edgeqwen.errors import EdgeqwenError

    try:
        edgeqwen.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except EdgeqwenError as error:
        click.echo(f"{click.style('error:', fg='red', bold=True)} {error}", err=True)
        sys.exit(1)
    except (KeyboardInterrupt, click.Abort):
        click.echo("stopped", err=True)
        sys.exit(130)
    except BrokenPipeError:  # `edgeqwen ... | head`: nobody reads any more
        sys.stderr.close()
        sys.exit(1)
