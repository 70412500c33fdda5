"""Recipes: read strictly, converted with nano, and held by the plan to what they claim."""

import json
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

from converters import recipe as recipe_module
from converters.recipe import find_recipe, read_recipe, recipes
from edgeqwen.artifact import open_artifact
from edgeqwen.boards import BOARDS
from edgeqwen.cli import edgeqwen
from edgeqwen.errors import RequestError
from edgeqwen.forecast import forecast

ROOT = Path(recipe_module.__file__).parent.parent
ALL = recipes()
GOOD = (ROOT / "recipes" / "pi5-4gb-chat.toml").read_text()


def row_of(recipe, model):
    rows = forecast(
        model, device=recipe.device, context_length=min(recipe.context, 4096 if model == "nano" else 1 << 20)
    )
    engine = {"gguf": "llamacpp", "onnx": "ort"}[recipe.formats[0]]
    return next(row for row in rows.rows if (row.type, row.engine) == (recipe.type, engine))


@pytest.mark.parametrize("name", ALL)
def test_what_a_recipe_claims_is_what_the_plan_says(name):
    recipe = ALL[name]
    assert recipe.fits
    assert all(row_of(recipe, model).fits for model in recipe.fits)
    assert not any(row_of(recipe, model).fits for model in recipe.too_large)


@pytest.mark.parametrize("name", ALL)
def test_nano_is_converted_by_every_recipe(name, tmp_path):
    out = tmp_path / "out"
    done = CliRunner().invoke(edgeqwen, ["convert", "nano", "--recipe", name, "--out", str(out), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.output)["recipe"] == name
    manifest = open_artifact(out, verify="full").manifest
    assert tuple(manifest.formats) == ALL[name].formats
    assert manifest.formats["gguf"].type.lower() == ALL[name].type


def test_every_device_has_a_recipe_and_the_table_names_them_all():
    assert {recipe.device for recipe in ALL.values()} == set(BOARDS)
    table = (ROOT / "recipes" / "README.md").read_text()
    for recipe in ALL.values():
        fits = ", ".join(model.removeprefix("Qwen/") for model in recipe.fits)
        assert f"| {recipe.name} | " in table
        assert f"| {recipe.type} | {recipe.context} | {fits} |" in table


def test_the_wheel_carries_them():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert settings["force-include"] == {"recipes": "converters/recipes"}
    assert [folder.relative_to(ROOT).as_posix() for folder in recipe_module._FOLDERS] == [
        "converters/recipes",
        "recipes",
    ]


def test_a_beginning_of_a_name_will_do():
    assert find_recipe("pi5").name == "pi5-4gb-chat"
    assert find_recipe("pi4").name == "pi4-2gb-chat"
    assert find_recipe("pi-zero2").name == "pi-zero2-chat"
    assert find_recipe("laptop").name == "laptop-chat"
    with pytest.raises(RequestError, match="pi5-4gb-chat"):
        find_recipe("pi6")
    with pytest.raises(RequestError, match="no recipe 'pi'"):
        find_recipe("pi")  # of which board?


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ('type = "q4_k_m"', 'type = "q9"', "q4_k_m"),
        ("context = 4096", "context = 4096\nthreads = 4", "threads is no key"),
        ("context = 4096", "context = '4096'", "a whole number"),
        ("context = 4096", "context = true", "a whole number"),
        ("context = 4096", "context = 1", "at least 256"),
        ("context = 4096\n", "", "context"),
        ('purpose = "chat"', 'purpose = "fun"', "chat, tools"),
        ('["gguf"]', '"gguf"', "a list of texts"),
        ('["gguf"]', '["mlx"]', "gguf, onnx"),
        ('title = "', 'title = "\n', "is not TOML"),
        ("title", "name", "name is no key"),
    ],
)
def test_a_wrong_recipe_is_refused_with_its_key(tmp_path, before, after, words):
    assert before in GOOD
    path = tmp_path / "wrong.toml"
    path.write_text(GOOD.replace(before, after, 1))
    with pytest.raises(RequestError, match=words):
        read_recipe(path)


def test_a_recipe_is_bounded(tmp_path):
    path = tmp_path / "long.toml"
    path.write_text("#" * (1 << 17))
    with pytest.raises(RequestError, match="at most"):
        read_recipe(path)


def test_the_command_lists_and_explains(tmp_path):
    def run(*arguments):
        return CliRunner().invoke(edgeqwen, [*arguments])

    assert all(name in run("recipes").output for name in ALL)
    listed = json.loads(run("recipes", "--json").output)["recipes"]
    assert [one["name"] for one in listed] == list(ALL)
    shown = run("recipes", "show", "pi5")
    assert shown.exit_code == 0
    assert "edgeqwen plan Qwen/Qwen3-0.6B --device pi5-4gb --context 4096" in shown.output
    assert json.loads(run("recipes", "show", "pi5", "--json").output) == listed[list(ALL).index("pi5-4gb-chat")]
    assert isinstance(run("recipes", "show", "pi6").exception, RequestError)
    made = run("convert", "nano", "--recipe", "pi5", "--out", str(tmp_path / "made"))
    assert made.output.startswith("recipe pi5-4gb-chat: chat on pi5-4gb\n")
    assert run("convert", "nano", "--recipe", "pi5", "--type", "q8_0").exit_code == 2
