"""Recipes: one TOML file for a device and a purpose -> a frozen Recipe; an unknown key is an error, nothing is run."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final, get_type_hints

from converters.build import resolve_type
from edgeqwen.errors import RequestError

PURPOSES: Final = ("chat", "tools")
_BYTES_MAX: Final = 1 << 16
# In a wheel they lie in this package, in a checkout beside it.
_FOLDERS: Final = (Path(__file__).parent / "recipes", Path(__file__).parent.parent / "recipes")


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to convert and load for a device. `fits` and `too_large` are models; `edgeqwen plan` holds them to it."""

    name: str  # the file's, without .toml
    title: str
    device: str  # of edgeqwen plan --device
    purpose: str  # chat, tools
    formats: tuple[str, ...]  # gguf, onnx
    type: str  # of convert --type
    context: int  # tokens
    reason: str
    fits: tuple[str, ...]  # for which there is memory at that context, and for no larger one
    too_large: tuple[str, ...] = ()

    @property
    def run_options(self) -> str:
        """What `edgeqwen run` is given."""
        return f"--context {self.context}"


def recipes() -> dict[str, Recipe]:
    """All that there are, by name; RequestError for one that is damaged."""
    folder = next((folder for folder in _FOLDERS if folder.is_dir()), None)
    paths = sorted(folder.glob("*.toml")) if folder else []
    return {path.stem: read_recipe(path) for path in paths}


def find_recipe(name: str) -> Recipe:
    """A recipe by its name, or by its beginning: pi5 is the chat on the smallest Pi 5; RequestError lists the names."""
    known = recipes()
    if name in known:
        return known[name]
    begun = [recipe for recipe in known.values() if recipe.name.startswith(name)]
    whole = all(recipe.name.startswith(f"{name}-") for recipe in begun)  # pi begins pi5, too
    chats = [recipe for recipe in begun if recipe.purpose == PURPOSES[0]]
    if not whole or not chats:
        raise RequestError(f"no recipe {name!r}; there are {', '.join(known)}")
    return min(chats, key=lambda recipe: (len(recipe.fits), recipe.name))


def read_recipe(path: Path) -> Recipe:
    """Read one file strictly; RequestError names the key that is wrong."""
    if path.stat().st_size > _BYTES_MAX:
        raise RequestError(f"{path} has {path.stat().st_size} bytes; a recipe has at most {_BYTES_MAX}")
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(f"{path}: is not TOML: {error}") from None
    kinds = get_type_hints(Recipe)
    known = [field.name for field in fields(Recipe) if field.name != "name"]
    if unknown := sorted(data.keys() - set(known)):
        raise RequestError(f"{path}: {unknown[0]} is no key of a recipe; there are {', '.join(known)}")
    values = {key: _checked(value, kinds[key], f"{path}: {key}") for key, value in data.items()}
    try:
        recipe = Recipe(name=path.stem, **values)
    except TypeError as error:  # a key that is missing
        raise RequestError(f"{path}: {error.args[0].partition('() ')[2]}") from None
    _check(recipe, path)
    return recipe


def _checked(value: Any, kind: Any, where: str) -> Any:
    """A value of the type that the key has."""
    if kind == tuple[str, ...] and isinstance(value, list) and all(isinstance(item, str) for item in value):
        return tuple(value)
    if kind in (str, int) and type(value) is kind:
        return value
    wanted = "a list of texts" if kind == tuple[str, ...] else {str: "a text", int: "a whole number"}[kind]
    raise RequestError(f"{where} is {value!r:.80}; {wanted} is expected")


def _check(recipe: Recipe, path: Path) -> None:
    if recipe.purpose not in PURPOSES:
        raise RequestError(f"{path}: purpose is {recipe.purpose!r}; there are {', '.join(PURPOSES)}")
    if recipe.context < 256:
        raise RequestError(f"{path}: context is {recipe.context}; at least 256 tokens are needed")
    try:
        resolve_type(recipe.type, recipe.formats)
    except RequestError as error:
        raise RequestError(f"{path}: {error}") from None


def as_dict(recipe: Recipe) -> Mapping[str, Any]:
    """The same as plain JSON data."""
    return {field.name: getattr(recipe, field.name) for field in fields(Recipe)}
