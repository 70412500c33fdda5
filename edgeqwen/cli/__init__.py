"""The command line: a command's module is imported when it runs, so that --help answers at once."""

from __future__ import annotations

import contextlib
import importlib
import signal
import sys

import click

INTERRUPTED = 130  # the exit code of Ctrl-C

# name -> what --help says of it; the command is the function of that name in edgeqwen/cli/<name>.py
COMMANDS = {
    "convert": "Turn a checkpoint into an artifact: quantized, verified, ready to run.",
    "run": "Ask a model one question, or talk with it.",
    "serve": "Serve models to OpenAI's clients.",
    "recipes": "List what was chosen for devices: type, context, models.",
    "plan": "Say what of a model fits a device, before it is downloaded.",
    "inspect": "Say what is in an artifact, a GGUF file or a checkpoint, and what memory it needs.",
    "bench": "Measure speed, time to the first token, loading and memory.",
    "pack": "Put a model and all it needs on a stick, for a machine without a network.",
    "doctor": "Say what this machine has and lacks for running models.",
    "engine": "Build, list and choose llama.cpp engines that need no compiler.",
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
    """Run the command line: exit 0, 1 with one line on stderr, 2 for a usage error, 130 for Ctrl-C, 143 for SIGTERM."""
    from edgeqwen.cli import terminal

    for name in ("SIGTERM", "SIGHUP"):  # a terminal that is closed; what is half written goes as with Ctrl-C
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:  # nohup ignores it
            signal.signal(number, _leave)
    try:
        terminal.open_streams()
        if code := edgeqwen.main(standalone_mode=False):  # a command's own exit code
            sys.exit(code)
    except (Exception, KeyboardInterrupt) as error:
        code, line = _verdict(error)
        if code is None:
            raise
        with contextlib.suppress(OSError):  # nobody reads stderr, or its disk is full
            if isinstance(error, click.ClickException):
                error.show()
            elif line:
                terminal.complain(line)
            elif code == INTERRUPTED:
                click.echo("stopped", err=True)
        terminal.drop_unwritten()
        sys.exit(code)


def _leave(number: int, _frame: object) -> None:
    sys.exit(128 + number)


def _verdict(error: BaseException) -> tuple[int | None, str]:
    """The exit code and the line of what can go wrong outside; None for a fault of the program itself."""
    from edgeqwen.errors import EdgeqwenError

    if isinstance(error, click.ClickException):
        return error.exit_code, ""
    if isinstance(error, KeyboardInterrupt | click.Abort):
        return INTERRUPTED, ""
    if isinstance(error, BrokenPipeError):  # `edgeqwen ... | head`: nobody reads any more
        return 1, ""
    if isinstance(error, OSError) and error.strerror:
        return 1, error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    no_home = isinstance(error, RuntimeError) and "home directory" in str(error)  # pathlib's words for ~nobody
    if no_home or isinstance(error, EdgeqwenError | OSError | UnicodeError):
        return 1, str(error) or type(error).__name__
    return None, ""
