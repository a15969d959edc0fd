"""The layers: imports go down only, third parties stay in their packages, and only one module reads test labels."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "captune"
# From the bottom; a package imports from itself and from lower layers only, never from another of its layer.
LAYERS = [
    {"errors", "interruption", "own_process", "plain_text", "revision"},
    {
        "config",
        "config_base",
        "durations",
        "metrics",
        "plain_yaml",
        "records",
        "seeding",
        "preprocessing",
        "space",
        "conditions",
    },
    {"data", "model", "equations", "decisions"},
    {"training"},
    {"algorithms"},
    {"adapted", "adapting"},
    {"tuning", "results", "cost"},
    {"studies"},
    {"cli"},
    {"api"},
    {"__init__", "__main__"},
]
ALLOWED = {
    "ray": {"tuning"},
    "optuna": {"tuning", "results"},
    "open_clip": {"model"},
    "pandas": {"results", "adapted", "api.py"},
    "matplotlib": {"results/plots.py", "results/class_plots.py"},
    "jinja2": {"results/rendering.py"},
}
MODULES = sorted(PACKAGE.rglob("*.py"))


def package_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def layer_of(package: str) -> int:
    return next(level for level, packages in enumerate(LAYERS) if package in packages)


@pytest.fixture(scope="module", autouse=True)
def forget_nodes() -> Iterator[None]:
    """Millions of small objects, which the garbage collector would go through to the end of all tests."""
    yield
    nodes_of.cache_clear()


@cache
def nodes_of(path: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


@cache
def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in nodes_of(path):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            assert node.level == 0, f"{path}: relative import"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def test_imports_go_down_only() -> None:
    wrong = set()
    for path in MODULES:
        package = package_of(path)
        for name in imported(path):
            parts = name.split(".")
            if parts[0] != "captune" or len(parts) == 1 or parts[1].startswith("__") or parts[1] == package:
                continue
            if not (layer_of(parts[1]) < layer_of(package) or layer_of(package) == layer_of(parts[1]) == 1):
                wrong.add(f"{path.relative_to(PACKAGE)} imports {name}")
    assert not wrong


def test_no_module_is_imported_by_what_it_imports() -> None:
    names = {".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): path for path in MODULES}
    graph: dict[str, set[str]] = {}
    for name, path in names.items():
        (module,) = (node for node in nodes_of(path)[:1] if isinstance(node, ast.Module))
        found = [node for node in module.body if isinstance(node, ast.ImportFrom)]
        wanted = {f"{node.module}.{alias.name}" for node in found for alias in node.names}
        graph[name] = {one for one in wanted | {str(node.module) for node in found} if one in names}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_third_parties_stay_in_their_packages() -> None:
    wrong = set()
    for path in MODULES:
        relative = str(path.relative_to(PACKAGE))
        for name in imported(path):
            allowed = ALLOWED.get(name.split(".")[0])
            if allowed is not None and not {relative, relative.split("/")[0]} & allowed:
                wrong.add(f"{relative} imports {name}")
    assert not wrong


def test_private_names_of_ray_and_optuna_stand_in_two_modules_only() -> None:
    found = set()
    for path in MODULES:
        for node in nodes_of(path):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            elif (
                isinstance(node, ast.Attribute)
                and node.attr in ("_storage", "_study_id", "_trial_id")
                and not ast.unparse(node.value).startswith(("self", "cls"))
            ):
                names = [f"optuna.{node.attr}"]
            if any(name.split(".")[0] in ("ray", "optuna") and "._" in name for name in names):
                found.add(str(path.relative_to(PACKAGE)))
    assert found == {"tuning/ray_internals.py", "tuning/optuna_internals.py"}


def test_only_evaluation_opens_the_seal() -> None:
    openers = {
        str(path.relative_to(PACKAGE))
        for path in MODULES
        for node in nodes_of(path)
        if (isinstance(node, ast.Attribute) and node.attr == "reveal")
        or (isinstance(node, ast.Constant) and node.value == "reveal")  # getattr(…, "reveal")
    }
    assert openers == {"training/evaluation.py"}


def test_nothing_unpickles_what_a_user_names() -> None:
    for path in MODULES:
        for node in nodes_of(path):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            assert called not in {"pickle.load", "pickle.loads", "yaml.unsafe_load", "eval", "exec", "os.system"}, path
            if called == "torch.load":
                keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert keywords.get("weights_only") == "True", f"{path}: torch.load without weights_only=True"
            if called == "yaml.load":
                assert "Loader" in {keyword.arg for keyword in node.keywords}, path
            assert "shell" not in {keyword.arg for keyword in node.keywords}, f"{path}: shell=True"


def test_modules_are_short() -> None:
    root = PACKAGE.parent
    files = [*MODULES, *(root / "tests").rglob("*.py"), *(root / "analysis").rglob("*.py")]
    long = {
        str(path.relative_to(root)): n for path in files if (n := path.read_text(encoding="utf-8").count("\n")) > 400
    }
    assert not long
