"""Who may import whom: packages import downward only, and no import goes in a circle."""

import ast
import re
import subprocess
import sys
import tomllib
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# The packages of the two houses, from the bottom to the top. A file imports its own package and packages
# to the left of it; "root" is the files of everest/ itself: the training loops and the library's face.
TOOLKIT = (
    *("errors", "system", "video", "methods", "config", "lists", "data", "metrics", "tokenizer", "models"),
    *("converters", "checkpoints", "engine", "inference", "probes", "figures", "evaluation"),
    *("profiling", "prepare", "root"),
)
WORKFLOWS = ("annotations", "recordings", "suggest", "sweep", "project")
PACKAGES = (*TOOLKIT, *WORKFLOWS, "demo", "cli")
TOP_PACKAGES = {"everest_demo": "demo", "everest_cli": "cli"}
DECODERS = {"av", "decord"}


@cache
def modules() -> dict[str, Path]:
    """Every module of the packages, by its name."""
    paths = [
        path
        for top in ("everest", "everest_workflows", *TOP_PACKAGES)
        for path in sorted((ROOT / top).rglob("*.py"))
    ]
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in paths
        if not path.is_relative_to(ROOT / "everest" / "recipes")
    }


def package_of(module: str) -> str:
    top, *rest = module.split(".")
    if top in TOP_PACKAGES:
        return TOP_PACKAGES[top]
    if top == "everest_workflows":
        return rest[0] if rest else "annotations"
    return rest[0] if rest and rest[0] in TOOLKIT else "root"


@cache
def nodes(path: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(path.read_text())))


@cache
def imports(path: Path) -> set[str]:
    """The modules that a file imports anywhere, those for types only included."""
    names = set()
    for node in nodes(path):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


def test_every_file_is_in_a_known_package_and_each_is_shipped():
    folders = {path.parent.name for path in (ROOT / "everest").rglob("*.py")} - {"everest", "recipes"}
    assert folders == set(TOOLKIT) - {"errors", "root"}
    workflows = {path.parent.name for path in (ROOT / "everest_workflows").rglob("*/*.py")}
    assert workflows == set(WORKFLOWS)
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    packages = {f"everest.{package}" for package in (*folders, "examples", "recipes")}
    packages |= {f"everest_workflows.{package}" for package in workflows}
    assert set(setup["packages"]) == {"everest", "everest_workflows", *packages, *TOP_PACKAGES}


def test_packages_import_downward_only():
    known = modules()
    upward = [
        f"{name} imports {used}"
        for name, path in known.items()
        if name != "everest"  # its names are loaded when they are first used
        for used in sorted(imports(path) & known.keys())
        if PACKAGES.index(package_of(used)) > PACKAGES.index(package_of(name))
        and used not in ("everest", "everest_workflows", "everest_cli")
    ]
    assert upward == []


def test_the_toolkit_imports_nothing_of_the_workflows():
    crossing = [
        f"{name} imports {used}"
        for name, path in modules().items()
        if name.split(".")[0] == "everest" and name != "everest"  # the front door loads both houses lazily
        for used in sorted(imports(path))
        if used.split(".")[0] == "everest_workflows"
    ]
    assert crossing == []


# What the workflows write, and what their commands and ideas are called.
WORDS_OF_THE_WORKFLOWS = re.compile(
    r"everest_workflows|everest (?:train|sweep|timeline|budget|recipes suggest)(?![\w-])|"
    r"(?:project|result)\.json|sweep|timeline|\bbouts?\b|\barms?\b|\bboris\b|\belan\b",
    re.IGNORECASE,
)


def test_the_toolkit_names_nothing_of_the_workflows():
    folder = ROOT / "everest"
    files = [path for path in folder.rglob("*") if path.suffix in (".py", ".html", ".md", ".yaml")]
    named = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in sorted(files)
        # The front door loads both houses lazily; of the recipes, some are for a command of the workflows.
        if path != folder / "__init__.py" and not path.is_relative_to(folder / "recipes")
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if WORDS_OF_THE_WORKFLOWS.search(line)
    ]
    assert named == []


def test_no_import_goes_in_a_circle():
    known = modules()
    graph = {
        name: {
            used for used in imports(path) & known.keys() if used != name and known[used].stem != "__init__"
        }
        for name, path in known.items()
        if path.stem != "__init__"
    }
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_no_private_name_of_another_file_is_imported():
    private = [
        f"{name} imports {used}"
        for name, path in modules().items()
        for used in sorted(imports(path))
        if used.startswith("everest") and used.rpartition(".")[2].startswith("_") and "__" not in used
    ]
    assert private == []


def test_private_names_of_libraries_are_used_in_one_file():
    """A private name: of an imported module, or of an attribute that the file itself does not define."""
    found = []
    for name, path in modules().items():
        own = {"_asdict", "_fields", "_replace"}  # of named tuples, which Python documents
        for node in nodes(path):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                own.add(node.name)
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                own.add(node.target.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                own.add(node.attr)
        used = {each for each in imports(path) if not each.startswith("everest")}
        used |= {node.attr for node in nodes(path) if isinstance(node, ast.Attribute)} - own
        found += [f"{name} uses {each}" for each in sorted(used) if re.search(r"(^|\.)_[a-z]", each)]
    assert {each for each in found if not each.startswith("everest.system.private_apis ")} == set()


def test_only_the_video_package_imports_decoders():
    users = {
        name
        for name, path in modules().items()
        if {used.split(".")[0] for used in imports(path)} & DECODERS and package_of(name) != "video"
    }
    assert users == set()


def test_only_the_config_package_imports_yaml():
    users = {name for name, path in modules().items() if "yaml" in imports(path)}
    assert users == {"everest.config.yaml"}


def test_nothing_in_the_library_prints():
    for name, path in modules().items():
        called = [node.func for node in nodes(path) if isinstance(node, ast.Call)]
        calls = [func.id for func in called if isinstance(func, ast.Name)]
        assert "print" not in calls or package_of(name) == "cli", name


LIST_RECIPES = "from typer.testing import CliRunner; from everest_cli.recipes import app; "
LIST_RECIPES += "assert CliRunner().invoke(app, ['list']).exit_code == 0"


@pytest.mark.parametrize(
    ("code", "heavy"),
    [
        ("import everest", "torch numpy pydantic av timm"),
        ("import everest.engine.listing, everest_cli.inspection", "torch"),  # `everest runs`
        (LIST_RECIPES, "torch"),
    ],
)
def test_what_needs_no_heavy_module_imports_none(code: str, heavy: str):
    program = f"import sys; {code}; print(*set({heavy.split()}) & set(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert shown.stdout == "\n"


IMPORTS = """
import importlib, os, pkgutil, signal, sys
import accelerate, psutil, torch  # which have versions of their own for Windows
for name in ("fcntl", "grp", "pty", "pwd", "resource", "termios"):
    sys.modules[name] = None
del signal.SIGUSR1, signal.SIGHUP, os.sched_getaffinity
for package in map(importlib.import_module, ("everest", "everest_workflows", "everest_cli", "everest_demo")):
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
from everest.system.processes import num_cores
from everest.system.signals import STOP_SIGNALS
assert STOP_SIGNALS == (signal.SIGINT, signal.SIGTERM), STOP_SIGNALS
assert num_cores() >= 1
"""


def test_all_modules_are_imported_without_what_only_posix_has():
    ended = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
