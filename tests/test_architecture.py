"""The layout holds: imports go one way, rooms form no circle, files and functions stay readable, all packages ship."""

import ast
import re
import tomllib
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
MODULES = {
    ".".join(["avpipe", *path.relative_to(REPOSITORY).with_suffix("").parts]).removesuffix(".__init__"): path
    for top in ("pipeline", "train")
    for path in (REPOSITORY / top).rglob("*.py")
}
# Each room may import those in front of it. Of `train`, any may import `pipeline`; the reverse never happens.
ROOMS = {
    "pipeline": [
        "core",
        "features",
        "work",
        "archives",
        "manifest",
        "media",
        "download",
        "extract",
        "shards",
        "exchange",
        "inspect",
        "synth",
        "cli",
    ],
    "train": [
        "core",
        "networks",
        "data",
        "methods",
        "models",
        "evaluation",
        "run",
        "localize",
        "reports",
        "demo",
        "cli",
    ],
}


def imports(module: str) -> set[str]:
    """Modules of avpipe that a module imports anywhere in it: in functions and under TYPE_CHECKING, too."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return {name for name in found if name in MODULES and name != module and not module.startswith(name + ".")}


def room(module: str) -> tuple[str, str]:
    parts = module.split(".")
    return parts[1], parts[2] if len(parts) > 2 else ""


def test_modules_form_no_circle():
    graph = {module: imports(module) for module in MODULES}
    assert sum(map(len, graph.values())) > 400
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_go_one_way(module):
    top, name = room(module)
    for imported in imports(module):
        other_top, other = room(imported)
        if other_top != top:
            assert (top, other_top) == ("train", "pipeline"), f"{module} imports {imported}"
        elif other != name and name:
            order = ROOMS[top]
            assert order.index(other) < order.index(name), f"{module} imports {imported}, a room above its own"


@pytest.mark.parametrize("module", sorted(MODULES))
def test_files_and_functions_are_short(module):
    text = MODULES[module].read_text()
    assert text.count("\n") <= 300, f"{module} has {text.count(chr(10))} lines"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno < 60, f"{module}.{node.name} has more than 60 lines"


def test_every_package_ships():
    """setuptools finds no packages behind a package-dir mapping, so pyproject.toml lists them."""
    listed = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    packages = {name for name, path in MODULES.items() if path.name == "__init__.py"} | {"avpipe.manifests"}
    assert set(listed) == packages
    assert {str(path.parent) for path in MODULES.values()} == {
        str(path.parent) for path in MODULES.values() if path.name == "__init__.py"
    }


@pytest.mark.parametrize(
    "folder", sorted({path.parent for path in MODULES.values()} - {REPOSITORY / top for top in ROOMS})
)
def test_every_room_has_a_short_readme_that_names_its_modules(folder):
    text = (folder / "README.md").read_text()
    assert 5 < len(text.splitlines()) <= 40
    modules = {path.name for path in folder.glob("*.py")} - {"__init__.py"}
    named = set(re.findall(r"`(\w+\.py)`", text))
    assert modules <= named | {"__main__.py"}, f"not in the README: {sorted(modules - named)}"
    assert all((folder / name).exists() for name in named), f"gone: {sorted(named - modules)}"
