"""The rules of CONTRIBUTING.md that a machine can check."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("edgeqwen", "converters")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
FILE_LINES, FUNCTION_LINES, NESTING = 400, 60, 3
FORBIDDEN_NAMES = {"utils", "util", "common", "helpers", "helper", "core", "misc", "base_utils"}
BLOCKS = (ast.If, ast.For, ast.While, ast.With, ast.Try, ast.AsyncFor, ast.AsyncWith)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
# What a layer may import of edgeqwen; who is not listed may import anything below the command line.
CONVERTERS_MAY_IMPORT = {
    "artifact",
    "artifact_writer",
    "device",
    "errors",
    "file_hash",
    "ggml_types",
    "gguf",
    "manifest",
    "native_engine",
    "onnx_file",
    "onnx_runtime",
    "reference_checkpoint",
    "strict_json",
    "types",
}
MAY_IMPORT_CONVERTERS = {"catalog.py", "inspection.py", "prospect.py"}


def identify(path):
    return str(path.relative_to(ROOT))


each_file = pytest.mark.parametrize("path", FILES, ids=identify)


def tree_of(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def functions(tree):
    return [node for node in ast.walk(tree) if isinstance(node, FUNCTIONS)]


def imports(tree):
    """(module, whether it is inside a function or a TYPE_CHECKING block) of every import."""
    inner = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, FUNCTIONS) or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
        for child in ast.walk(node)
        if child is not node
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            yield name, id(node) in inner


def depth(node):
    """Nesting of blocks; an elif is no deeper than its if."""
    deepest = 0
    for child in ast.iter_child_nodes(node):
        if isinstance(child, FUNCTIONS):
            continue
        is_elif = isinstance(node, ast.If) and isinstance(child, ast.If) and child in node.orelse
        deepest = max(deepest, depth(child) + (isinstance(child, BLOCKS) and not is_elif))
    return deepest


@each_file
def test_files_and_functions_are_short_and_flat(path):
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= FILE_LINES
    for function in functions(ast.parse(text)):
        assert function.end_lineno - function.lineno < FUNCTION_LINES, function.name
        assert depth(function) <= NESTING, function.name


@each_file
def test_every_module_says_what_it_does_and_every_function_what_it_returns(path):
    tree = tree_of(path)
    assert ast.get_docstring(tree), "a module opens with one sentence"
    assert path.stem not in FORBIDDEN_NAMES
    for function in functions(tree):
        assert function.returns is not None, function.name
        assert function.args.kwarg is None or function.args.kwarg.annotation is not None, function.name


def test_no_body_is_there_twice():
    seen = {}
    for path in FILES:
        for function in functions(tree_of(path)):
            body = function.body[1:] if ast.get_docstring(function) else function.body
            text = "\n".join(ast.unparse(statement) for statement in body)
            if text.count("\n") >= 5:
                where = f"{identify(path)}:{function.name}"
                assert seen.setdefault(text, where) == where


@each_file
def test_imports_point_one_way(path):
    inside_edgeqwen = path.is_relative_to(ROOT / "edgeqwen")
    in_cli = path.is_relative_to(ROOT / "edgeqwen" / "cli")
    for module, inner in imports(tree_of(path)):
        top, _, rest = module.partition(".")
        assert top not in {"torch", "transformers", "pickle"} or "reference" in path.name
        assert top != "onnxruntime" or (path.name == "onnx_runtime.py" and inner)  # which silences it
        assert top != "llama_cpp" or (path.name == "llamacpp_library.py" and inner)
        if top == "converters" and inside_edgeqwen:
            assert inner, f"{module}: inside functions only"
            assert in_cli or path.name in MAY_IMPORT_CONVERTERS
        if top == "edgeqwen" and not inside_edgeqwen:
            assert rest.split(".")[0] in CONVERTERS_MAY_IMPORT, module
        if top == "edgeqwen" and not in_cli:
            assert not rest.startswith("cli"), module


@each_file
def test_the_library_neither_prints_nor_exits(path):
    if path.is_relative_to(ROOT / "edgeqwen" / "cli"):
        return
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in {"print", "exit", "quit", "os._exit", "eval", "exec"}, called
            assert called != "sys.exit" or "__main__" in path.read_text(encoding="utf-8")


def test_the_public_names_are_sorted_and_there():
    import edgeqwen

    assert edgeqwen.__all__ == sorted(edgeqwen.__all__)
    for name in edgeqwen.__all__:
        assert getattr(edgeqwen, name) is not None


@pytest.mark.parametrize("readme", ["README.md", "README.zh.md"])
def test_the_file_tree_of_the_readme_is_the_one_on_disk(readme):
    text = (ROOT / readme).read_text(encoding="utf-8")
    block = next(block for block in text.split("```")[1::2] if "edgeqwen/\n" in block)
    listed, folders = set(), []
    for line in block.splitlines():
        if not line.strip():
            continue
        level = (len(line) - len(line.lstrip())) // 2
        name = line.split()[0]
        folders = folders[:level]
        if name.endswith("/"):
            folders.append(name)
            listed.add("".join(folders))
        else:
            listed.add("".join(folders) + name)
    for entry in listed:
        assert (ROOT / entry).exists(), f"{readme} lists {entry}"
    for path in FILES:
        if path.name != "__init__.py":
            assert identify(path) in listed, f"{readme} does not list {identify(path)}"


def test_nothing_speaks_of_where_it_was_made():
    words = re.compile("|".join(["/wo" + "rk/", "work" + "place", "farm" + "-bench", "opt/" + "pypi"]))
    ours = [
        path
        for folder in (*PACKAGES, "tests", "benchmarks", "recipes", "examples")
        for path in (ROOT / folder).rglob("*")
    ]
    ours += [path for path in ROOT.iterdir() if path.is_file() and path.name != ".git"]
    for path in ours:
        if path.is_file() and path.suffix in {".py", ".md", ".toml", ".json", ".sh", ".txt", ""}:
            found = words.search(path.read_text(encoding="utf-8", errors="ignore"))
            assert not found, f"{identify(path)}: {found}"


@pytest.mark.parametrize("readme", ["README.md", "README.zh.md"])
def test_the_readme_is_complete(readme):
    assert "@@" not in (ROOT / readme).read_text(encoding="utf-8")
