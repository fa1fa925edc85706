"""The rules of mtl/ and jobs/, read from the source itself: who may import whom, and what may not appear at all."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# A module imports only modules of its own rank or a lower one. A name stands for itself and for all modules below it.
RANKS = {
    "mtl.errors": 0,
    "mtl.findings": 1,
    "mtl.versions": 1,
    "mtl.schema": 1,
    "mtl.balancing_config": 1,
    "mtl.config": 1,
    "mtl.task_config": 1,
    "mtl.config_augment": 1,
    "mtl.config_model": 1,
    "mtl.config_optimizer": 1,
    "mtl.config_tracking": 1,
    "mtl.config_resources": 1,
    "mtl.config_evaluation": 1,
    "mtl.config_order": 1,
    "mtl.store": 1,
    "mtl.progress": 1,
    "mtl.cli": 1,
    "mtl.blame": 1,
    "mtl.verdicts": 1,
    "mtl.console": 1,
    "mtl.limit": 1,
    "mtl.tree": 2,
    "mtl.losses": 2,
    "mtl.tasks": 2,
    "mtl.metrics": 2,
    "mtl.model": 3,
    "mtl.balancing": 3,
    "mtl.optim": 3,
    "mtl.data": 3,
    "mtl.recipes": 4,
    "mtl.label_checks": 4,
    "mtl.mixing": 4,
    "mtl.rebalancing": 4,
    "mtl.preflight": 4,
    "mtl.runtime": 4,
    "mtl.owner": 4,
    "mtl.record": 4,
    "mtl.lease": 4,
    "mtl.attempt": 4,
    "mtl.janitor": 4,
    "mtl.goodput": 4,
    "mtl.logs": 4,
    "mtl.checkpoint": 4,
    "mtl.optimizer_state": 4,
    "mtl.distil": 4,
    "mtl.ema": 4,
    "mtl.accounting": 4,
    "mtl.tracking": 4,
    "mtl.precision": 4,
    "mtl.selection": 4,
    "mtl.background": 4,
    "mtl.inputs": 5,
    "mtl.budget": 5,
    "mtl.overfit": 5,
    "mtl.agreement": 5,
    "mtl.tally": 5,
    "mtl.trainee": 5,
    "mtl.profiling": 5,
    "mtl.rewind": 4,
    "mtl.loop": 5,
    "mtl.state": 5,
    "mtl.arguments": 6,
    "mtl.doctor": 6,
    "mtl.rehearsal": 6,
    "mtl.embedded": 6,
    "mtl.evaluation": 6,
    "mtl.job": 6,
    "mtl.local": 6,
    "mtl.memory": 6,
    "mtl.parts": 6,
    "mtl.preview": 6,
    "mtl.session": 6,
    "mtl.scoring": 6,
    "mtl.sweep": 6,
    "mtl.on_ray": 7,
    "jobs": 8,
}

# Third-party packages that only some modules may know of.
CONFINED = {
    "ray": ("mtl.on_ray", "jobs"),
    "pyarrow": ("mtl.data", "mtl.store"),
    "boto3": ("mtl.store",),
    "botocore": ("mtl.store",),
    "optuna": ("mtl.sweep",),
    "matplotlib": ("mtl.sweep",),
}

# What the checks before a run are made of: they answer at once because neither torch nor ray is loaded.
TORCH_FREE = (
    "mtl.errors",
    "mtl.findings",
    "mtl.versions",
    "mtl.schema",
    "mtl.balancing_config",
    "mtl.config",
    "mtl.task_config",
    "mtl.tree",
    "mtl.config_model",
    "mtl.config_optimizer",
    "mtl.config_tracking",
    "mtl.config_resources",
    "mtl.tracking",
    "mtl.config_evaluation",
    "mtl.config_augment",
    "mtl.config_order",
    "mtl.selection",
    "mtl.store",
    "mtl.progress",
    "mtl.cli",
    "mtl.blame",
    "mtl.verdicts",
    "mtl.console",
    "mtl.limit",
    "mtl.recipes",
    "mtl.owner",
    "mtl.record",
    "mtl.lease",
    "mtl.attempt",
    "mtl.janitor",
    "mtl.label_checks",
    "mtl.mixing",
    "mtl.rebalancing",
    "mtl.preflight",
    "mtl.arguments",
    "mtl.doctor",
    "mtl.embedded",
    "mtl.sweep.arguments",
    "mtl.sweep.board",
    "mtl.sweep.capacity",
    "mtl.sweep.objective",
    "mtl.sweep.pareto",
    "mtl.sweep.picture",
    "mtl.sweep.proposals",
    "mtl.sweep.record",
    "mtl.sweep.results",
    "mtl.sweep.settings",
    "mtl.sweep.space",
    "mtl.sweep.terms",
    "mtl.data.balance",
    "mtl.data.batch",
    "mtl.data.columns",
    "mtl.data.counts",
    "mtl.data.derivation",
    "mtl.data.example",
    "mtl.data.files",
    "mtl.data.footprint",
    "mtl.data.groups",
    "mtl.data.image",
    "mtl.data.joined",
    "mtl.data.keyed",
    "mtl.data.known",
    "mtl.data.label_columns",
    "mtl.data.labels",
    "mtl.data.lanes",
    "mtl.data.loader",
    "mtl.data.lookup",
    "mtl.data.manifest",
    "mtl.data.memory",
    "mtl.data.mixture",
    "mtl.data.order",
    "mtl.data.reader",
    "mtl.data.repeats",
    "mtl.data.seekable",
    "mtl.data.shapes",
    "mtl.data.shard",
    "mtl.data.source",
    "mtl.data.target",
    "mtl.data.taxonomy",
    "mtl.data.transforms",
    "mtl.data.writer",
)

# Bytes fetched from storage must never become code.
UNSAFE = (
    "cloudpickle",
    "dill",
    "eval",
    "exec",
    "joblib",
    "marshal",
    "pickle",
    "shelve",
    "torch.distributed.checkpoint",
    "torch.jit.load",
    "torch.load",
)

MAX_LINES = {"mtl": 320, "mtl.loop": 299, "jobs": 80}


def _under(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def _module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


FILES = {_module_name(path): path for folder in ("mtl", "jobs") for path in sorted((ROOT / folder).rglob("*.py"))}


def _longest_prefix(name: str, table: dict[str, int]) -> int | None:
    matches = [prefix for prefix in table if _under(name, prefix)]
    return table[max(matches, key=len)] if matches else None


def _rank(module: str) -> int:
    rank = 0 if module == "mtl" else _longest_prefix(module, RANKS)
    assert rank is not None, f"{module} has no rank: give it one in RANKS of {Path(__file__).relative_to(ROOT)}"
    return rank


def _imports(tree: ast.AST, module: str, *, package: bool) -> Iterator[tuple[str, str]]:
    """Each imported thing, wherever in the file it stands, as (name it gets in the file, absolute dotted name)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.asname or alias.name, alias.name
        elif isinstance(node, ast.ImportFrom):
            parts = module.split(".") if package else module.split(".")[:-1]
            base = parts[: len(parts) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                yield alias.asname or alias.name, f"{source}.{alias.name}"
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            for argument in node.args[:1]:
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                    yield argument.value, argument.value


def _used_names(tree: ast.AST, module: str, *, package: bool) -> set[str]:
    """Absolute dotted names of everything imported, and of every name and attribute that starts at an import."""
    imported = dict(_imports(tree, module, package=package))
    used = set(imported.values())
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute):
            head, dot, rest = ast.unparse(node).partition(".")
            used.add(imported.get(head, head) + dot + rest)
    return used


@cache
def _parsed(module: str) -> tuple[ast.AST, bool]:
    return ast.parse(FILES[module].read_text()), FILES[module].name == "__init__.py"


@cache
def _imported(module: str) -> frozenset[str]:
    tree, package = _parsed(module)
    return frozenset(target for _, target in _imports(tree, module, package=package))


def _own_imports(module: str) -> set[str]:
    """The modules of this repository that `module` imports: `from mtl.store import Store` is `mtl.store`."""
    own = {name if name in FILES else name.rpartition(".")[0] for name in _imported(module)}
    return {name for name in own if name in FILES and name != module}


@pytest.mark.parametrize("module", FILES)
def test_imports_point_to_the_left(module: str) -> None:
    rank = _rank(module)
    breaches = [name for name in _own_imports(module) if _rank(name) > rank]
    assert not breaches, f"{module} (rank {rank}) imports from its right: {breaches}"


def test_imports_have_no_cycle() -> None:
    try:
        TopologicalSorter({module: _own_imports(module) for module in FILES}).prepare()
    except CycleError as error:
        pytest.fail(f"modules import each other in a circle: {' <- '.join(error.args[1])}")


def test_own_imports_name_modules_that_exist() -> None:
    for module in FILES:
        for name in _imported(module):
            if _under(name, "mtl"):
                assert name in FILES or name.rpartition(".")[0] in FILES, f"{module} imports {name}: no such module"


@pytest.mark.parametrize("package", CONFINED)
def test_package_is_imported_only_where_it_belongs(package: str) -> None:
    for module in FILES:
        if not any(_under(module, home) for home in CONFINED[package]):
            found = [name for name in _imported(module) if _under(name, package)]
            assert not found, f"{module} imports {found}; only {CONFINED[package]} may import {package}"


def test_light_modules_load_neither_torch_nor_ray() -> None:
    light = [module for module in FILES if any(_under(module, prefix) for prefix in TORCH_FREE)]
    code = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name)\n"
        "    heavy = {'torch', 'ray'} & set(sys.modules)\n"
        "    assert not heavy, f'importing {name} loads {heavy}'\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *light], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("module", FILES)
def test_nothing_turns_bytes_into_code(module: str) -> None:
    tree, package = _parsed(module)
    used = _used_names(tree, module, package=package)
    found = {name for name in used if any(_under(name, unsafe) for unsafe in UNSAFE)}
    assert not found, f"{module} uses {found}: tensors travel as safetensors, everything else as JSON or YAML"
    flags = {keyword.arg for keyword in ast.walk(tree) if isinstance(keyword, ast.keyword)}
    assert "allow_pickle" not in flags, f"{module} passes allow_pickle"


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ndef f():\n    return torch.load('x')",
        "from torch import load as read",
        "import torch.distributed.checkpoint as dcp",
        "from torch.distributed import checkpoint",
        "import torch.distributed as dist\ndist.checkpoint.save({})",
        "import numpy, pickle",
        "__import__('marshal')",
        "import importlib\nimportlib.import_module('shelve')",
        "eval('1')",
    ],
)
def test_disguises_of_unsafe_names_are_seen_through(source: str) -> None:
    used = _used_names(ast.parse(source), "mtl.x", package=False)
    assert any(_under(name, unsafe) for name in used for unsafe in UNSAFE)


def test_harmless_names_are_left_alone() -> None:
    used = _used_names(ast.parse("from safetensors.torch import load\nmodel.eval()\nload(b'')"), "mtl.x", package=False)
    assert not any(_under(name, unsafe) for name in used for unsafe in UNSAFE)


def test_relative_imports_are_resolved() -> None:
    source = ast.parse("from . import order\nfrom ..store import Store")
    assert {name for _, name in _imports(source, "mtl.data.reader", package=False)} == {
        "mtl.data.order",
        "mtl.store.Store",
    }
    assert {name for _, name in _imports(ast.parse("from .order import x"), "mtl.data", package=True)} == {
        "mtl.data.order.x"
    }


@pytest.mark.parametrize("module", FILES)
def test_file_is_short_enough_to_be_one_idea(module: str) -> None:
    limit, lines = _longest_prefix(module, MAX_LINES), len(FILES[module].read_text().splitlines())
    assert limit is not None
    assert lines <= limit, f"{module} has {lines} lines, {limit} at most: split it by idea"
