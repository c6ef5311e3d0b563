"""Which package may import which: the directions that keep the model free of the laboratory around it."""

from __future__ import annotations

import ast
import graphlib
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAB = {"mlflow", "optuna", "ruamel", "yaml", "pydantic", "pandas", "ablations", "reports"}

FORBIDDEN = {
    "sagan": (LAB, "sagan is the model: it knows no tracker, queue, study file or report"),
    "ablations": ({"reports", "pandas"}, "ablations runs studies; reports reads what it stored"),
    "reports": ({"torch", "torchvision", "sagan", "ablations", "optuna"}, "reports reads the store and trains nothing"),
}
# Both sides share these alone: pure functions, so that a plan, its launches and their report use one test.
BOTH_SIDES = {"reports", "reports.findings", "reports.metrics", "reports.sequential", "reports.statistics"}
SHARED = tuple(f"ablations/{name}.py" for name in ("dry_run", "results", "table", "verdicts"))
ONLY_IN = {
    "torch_fidelity": ("sagan/metrics/",),
    "optuna": ("ablations/storage.py", "ablations/queue.py", "ablations/search.py"),
    "ruamel": ("ablations/document.py", "reports/paper.py", "reports/statistics.py"),
    "yaml": (),
    "pydantic": ("ablations/study.py", "ablations/study_file.py"),
    "mlflow": ("ablations/tracking/", "reports/store.py"),
}
# Imported while a bad study file or --help is answered, which takes under a second.
QUICK = ("document", "machine", "plan", "preflight", "run", "study", "study_file")
HEAVY = {"torch", "mlflow", "optuna", "numpy", "sqlalchemy"}


def sources() -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for package in FORBIDDEN for path in (ROOT / package).rglob("*.py"))


def test_every_package_is_installed() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert {name.replace(".", "/") for name in listed} == {str(Path(path).parent) for path in sources()}


def imported(path: str, top_level_only: bool = False, for_types: bool = True) -> Iterator[str]:
    """`for_types` also those that are there for a type checker alone."""
    nodes = ast.parse((ROOT / path).read_text()).body
    while nodes:
        node = nodes.pop(0)
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative imports hide their direction; write the package"
            yield str(node.module)
            if (ROOT / str(node.module).replace(".", "/")).is_dir():
                yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and not for_types:
            nodes += node.orelse
        elif not top_level_only:
            nodes += [
                child for child in ast.iter_child_nodes(node) if hasattr(child, "body") or isinstance(child, ast.stmt)
            ]


def test_the_statistics_are_all_that_both_sides_share() -> None:
    for path in SHARED:
        shared = {module for module in imported(path) if module.startswith("reports")}
        assert "reports.statistics" in shared and shared <= BOTH_SIDES
    pure = ("findings", "format", "sequential", "statistics")
    own = {module for name in pure for module in imported(f"reports/{name}.py")}
    own = {
        module.split(".")[0] for module in own if module.removeprefix("reports.") not in (*pure, "metrics", "reports")
    }
    assert own <= {"__future__", "math", "collections", "dataclasses", "functools", "importlib", "numpy", "scipy",
                   "ruamel", "typing"}  # fmt: skip
    assert set(imported("reports/metrics.py")) == {"__future__", "dataclasses"}


def test_a_section_of_the_page_shows_results_and_knows_neither_the_store_nor_the_page() -> None:
    sections = [path for path in sources() if path.startswith("reports/sections/")]
    assert len(sections) > 5
    for path in sections:
        outside = {"reports.store", "reports.loading", "reports.build", "reports.page", "reports.writers"}
        assert not set(imported(path)) & outside, f"{path}: a section gets results and returns tables and figures"


@pytest.mark.parametrize(("package", "most_layers"), [("sagan", 15), ("ablations", 6), ("reports", 12)])
def test_a_package_has_few_layers_and_no_cycle(package: str, most_layers: int) -> None:
    """The layer of a module is one above the highest that it imports, also within functions, but not for types."""
    paths = [path for path in sources() if path.startswith(f"{package}/") and path != f"{package}/__init__.py"]
    files = {path.removesuffix(".py").removesuffix("/__init__").replace("/", "."): path for path in paths}
    graph = graphlib.TopologicalSorter(
        {name: set(imported(path, for_types=False)) & files.keys() - {name} for name, path in files.items()}
    )
    graph.prepare()  # raises CycleError
    layers = []
    while graph.is_active():
        layers.append(sorted(graph.get_ready()))
        graph.done(*layers[-1])
    assert len(layers) <= most_layers, layers


@pytest.mark.parametrize("path", sources())
def test_imports_follow_the_directions(path: str) -> None:
    forbidden, rule = FORBIDDEN[path.split("/")[0]]
    for module in imported(path):
        package = module.split(".")[0]
        if package == "reports" and path in SHARED:
            continue
        assert package not in forbidden, f"{path} imports {module}: {rule}"
        allowed = ONLY_IN.get(package)
        assert allowed is None or path.startswith(allowed), f"{path} imports {module}: only {allowed} may"


# Whether a command of sagan imports torch and the like before it has read its options.
COMMANDS = {"train": False, "evaluate": False, "generate": True}


@pytest.mark.parametrize(("command", "is_heavy"), COMMANDS.items())
def test_a_command_of_sagan_tells_a_mistake_without_torch_where_training_or_scoring_is_long(
    command: str, is_heavy: bool
) -> None:
    seen, waiting = set[str](), [f"sagan.{command}"]
    while waiting:
        module = waiting.pop()
        path = f"{module.replace('.', '/')}.py"
        if module not in seen and (ROOT / path).is_file():
            waiting += imported(path, top_level_only=True)
        seen.add(module)
    heavy = {module.split(".")[0] for module in seen} & HEAVY
    assert bool(heavy) == is_heavy, f"sagan.{command} imports {sorted(heavy)}"


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_sagan_is_imported_by_no_other_module_of_it(command: str) -> None:
    for path in sources():
        if path.startswith("sagan/"):
            assert f"sagan.{command}" not in imported(path), f"{path} imports the command sagan.{command}"


@pytest.mark.parametrize("module", QUICK)
def test_the_command_line_starts_without_heavy_imports(module: str) -> None:
    for name in imported(f"ablations/{module}.py", top_level_only=True):
        package, _, rest = name.partition(".")
        assert package not in HEAVY, f"ablations/{module}.py imports {name}: --help would wait for it"
        assert package != "ablations" or rest in QUICK, f"ablations/{module}.py imports {name}, which is not quick"
        assert package != "sagan" or rest in ("config", "limits", "options", "presets"), (
            f"ablations/{module}.py imports {name}: torch follows"
        )


# What turns bytes into code, and what makes a call of it harmless.
UNSAFE = {
    **dict.fromkeys(("eval", "exec", "pickle.load", "pickle.loads", "os.system"), ""),
    "YAML": "typ='safe'",
    **dict.fromkeys(("torch.load", "torch.hub.load"), "weights_only=True"),
    **dict.fromkeys(("np.load", "numpy.load"), "allow_pickle=False"),
}


@pytest.mark.parametrize("path", sources())
def test_nothing_that_is_read_can_run_as_code(path: str) -> None:
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if not isinstance(node, ast.Call):
            continue
        options = [ast.unparse(keyword) for keyword in node.keywords]
        needed = UNSAFE.get(ast.unparse(node.func))
        assert needed is None or needed in options, f"{path}:{node.lineno}: {ast.unparse(node)} must have {needed}"
        assert "shell=True" not in options, f"{path}:{node.lineno}: a shell reads names as commands"
