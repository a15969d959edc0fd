"""The house's shape: imports go down only, third parties stay in their rooms, the seal has one opener."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "captune"
# Rooms from the ground up; a room imports from its own and from lower floors only, never from a row-mate.
FLOORS = [
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
HOMES = {
    "ray": {"tuning"},
    "optuna": {"tuning", "results"},
    "open_clip": {"model"},
    "pandas": {"results", "adapted", "api.py"},
    "matplotlib": {"results/plots.py", "results/class_plots.py"},
    "jinja2": {"results/rendering.py"},
}
MODULES = sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def floor_of(room: str) -> int:
    return next(level for level, rooms in enumerate(FLOORS) if room in rooms)


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
        room = room_of(path)
        for name in imported(path):
            parts = name.split(".")
            if parts[0] != "captune" or len(parts) == 1 or parts[1].startswith("__") or parts[1] == room:
                continue
            if not (floor_of(parts[1]) < floor_of(room) or floor_of(room) == floor_of(parts[1]) == 1):
                wrong.add(f"{path.relative_to(PACKAGE)} imports {name}")
    assert not wrong


def test_third_parties_stay_in_their_rooms() -> None:
    wrong = set()
    for path in MODULES:
        relative = str(path.relative_to(PACKAGE))
        for name in imported(path):
            homes = HOMES.get(name.split(".")[0])
            if homes is not None and not {relative, relative.split("/")[0]} & homes:
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
