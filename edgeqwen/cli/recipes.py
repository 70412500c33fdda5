"""The command `recipes`: devices and purposes for which a type and a context are chosen already."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from edgeqwen.cli.terminal import escaped, json_text

if TYPE_CHECKING:
    from converters.recipe import Recipe


@click.group(invoke_without_command=True, short_help="List what was chosen for devices: type, context, models.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def recipes(ctx: click.Context, *, as_json: bool) -> None:
    """List the recipes: for a device and a purpose a type, a context, and the models for which there is memory.

    \b
    edgeqwen recipes
    edgeqwen recipes show pi5-4gb-chat
    edgeqwen convert Qwen/Qwen3-0.6B --recipe pi5      # a beginning will do: the chat on the smallest Pi 5
    """
    from converters.recipe import as_dict
    from converters.recipe import recipes as read_all

    if ctx.invoked_subcommand is not None:
        return
    found = read_all()
    if as_json:
        click.echo(json_text({"recipes": [dict(as_dict(recipe)) for recipe in found.values()]}))
        return
    width = max(map(len, found), default=0)
    for name, recipe in found.items():
        click.echo(escaped(f"{name:<{width}}  {recipe.type:<7} {recipe.context:>6} tokens  {recipe.title}"))


@recipes.command(short_help="Say what a recipe chooses, and why.")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def show(name: str, *, as_json: bool) -> None:
    """Say what the recipe NAME chooses and why; `edgeqwen plan` has the figures."""
    from converters.recipe import as_dict, find_recipe

    recipe = find_recipe(name)
    click.echo(json_text(dict(as_dict(recipe))) if as_json else "\n".join(map(escaped, _lines(recipe))))


def _lines(recipe: Recipe) -> list[str]:
    model = recipe.fits[0] if recipe.fits else "nano"
    rows = [
        ("recipe", recipe.name),
        ("for", recipe.title),
        ("type", f"{recipe.type}, {', '.join(recipe.formats)}"),
        ("context", f"{recipe.context} tokens"),
        ("why", recipe.reason),
        ("fits", ", ".join(recipe.fits) or "none"),
        ("too large", ", ".join(recipe.too_large) or "none that was looked at"),
        ("convert", f"edgeqwen convert {model} --recipe {recipe.name}"),
        ("then", f"edgeqwen run FOLDER {recipe.run_options}"),
        ("figures", f"edgeqwen plan {model} --device {recipe.device} --context {recipe.context}"),
    ]
    return [f"{label:<10} {text}" for label, text in rows]
