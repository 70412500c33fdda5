"""The command `completion`: the script that makes a shell complete edgeqwen's commands and options."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print the completion script for SHELL.

    \b
    edgeqwen completion bash >> ~/.bashrc
    edgeqwen completion zsh >> ~/.zshrc
    edgeqwen completion fish > ~/.config/fish/completions/edgeqwen.fish
    """
    from edgeqwen.cli import edgeqwen

    found = get_completion_class(shell)
    if found is None:  # click knows the three
        raise click.UsageError(f"no completion for {shell}; there are {', '.join(SHELLS)}")
    click.echo(found(edgeqwen, {}, "edgeqwen", "_EDGEQWEN_COMPLETE").source())
