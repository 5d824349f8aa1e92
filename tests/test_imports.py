"""Imports between packages run one way, and light modules load no heavy packages."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import cdserve
from tests.waiting import HANG_SECONDS

ROOT = Path(cdserve.__file__).parent.parent
HEAVY = ["torch", "vllm", "transformers"]
LIGHT = [
    "cdserve",
    "cdserve.errors",
    "cdserve.kl",
    "cdserve.policy",
    "cdserve.config",
    "cdserve.decoders",
    "cdserve.scoring",
    "cdserve.report",
    "cdserve.shared_table",
    "cdserve.worker.request",
    "cdserve.worker.rows",
    "cdserve.worker.register",
    "cdserve.demo.tiny",
    "cdserve.demo.tiny.reward",
    "cdserve.ray_serve.proxy",
    "cdserve.cli",
]
PURE = ["decoders", "scoring", "policy", "config", "errors", "kl", "report", "shared_table"]
PURE += ["validation"]
IMPORTING = """
import importlib, json, sys
loaded = {}
heavy, light = (names.split(",") for names in sys.argv[1:])
for name in light:
    importlib.import_module(name)
    loaded[name] = [package for package in heavy if package in sys.modules]
print(json.dumps(loaded))
"""


@pytest.fixture(scope="module")
def loaded() -> dict[str, list[str]]:
    """Heavy packages in memory after the import of each light module, in order."""
    command = [sys.executable, "-c", IMPORTING, ",".join(HEAVY), ",".join(LIGHT)]
    run = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=HANG_SECONDS)
    packages: dict[str, list[str]] = json.loads(run.stdout)
    return packages


@pytest.mark.parametrize("module", LIGHT)
def test_light_module_loads_no_heavy_package(loaded: dict[str, list[str]], module: str) -> None:
    assert loaded[module] == []


def modules(package: str) -> Iterator[Path]:
    """All source files of a module or package, such as ``cdserve.decoders``."""
    place = ROOT / package.replace(".", "/")
    files = sorted(place.rglob("*.py")) if place.is_dir() else [place.with_suffix(".py")]
    assert files
    return iter(files)


@cache
def imports(file: Path) -> frozenset[str]:
    """Absolute dotted names of all modules and names that a file imports."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = parts[: len(parts) - node.level] if node.level else ()
            base = ".".join([*above, *([node.module] if node.module else [])])
            names |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return frozenset(names)


def imported(package: str, *targets: str) -> list[str]:
    """Imports of the targets, or of anything inside them, in a package."""
    return [
        f"{file.relative_to(ROOT)} imports {name}"
        for file in modules(package)
        for name in sorted(imports(file))
        if any(name == target or name.startswith(f"{target}.") for target in targets)
    ]


def test_import_walk_finds_known_imports() -> None:
    assert imported("cdserve.worker", "cdserve.shared_table")
    assert imported("cdserve.engine", "vllm")
    assert imported("cdserve.demo.tiny", "cdserve.demo.tiny.lexicon")  # a relative import


@pytest.mark.parametrize("module", PURE)
def test_pure_module_imports_no_engine_and_no_web_framework(module: str) -> None:
    outside = ["vllm", "torch", "fastapi", "value_heads"]
    ours = [f"cdserve.{name}" for name in ("launch", "engine", "api", "worker", "demo", "cli")]
    assert imported(f"cdserve.{module}", *outside, *ours) == []


@pytest.mark.parametrize(
    "module", ["errors", "kl", "shared_table", "policy", "config", "validation"]
)
def test_base_module_imports_no_decoders_scoring_or_report(module: str) -> None:
    above = [f"cdserve.{name}" for name in ("decoders", "scoring", "report")]
    assert imported(f"cdserve.{module}", *above) == []


def test_decoders_import_neither_scoring_nor_config() -> None:
    assert imported("cdserve.decoders", "cdserve.scoring", "cdserve.config") == []


def test_engine_does_not_import_the_api() -> None:
    assert imported("cdserve.engine", "cdserve.api", "fastapi") == []


@pytest.mark.parametrize("package", ["api", "engine", "worker"])
def test_packages_of_requests_do_not_import_the_start(package: str) -> None:
    assert imported(f"cdserve.{package}", "cdserve.launch") == []


def test_worker_imports_only_the_shared_table_and_heads() -> None:
    allowed = ("cdserve.worker", "cdserve.shared_table")
    others = [
        line
        for line in imported("cdserve.worker", "cdserve")
        if not line.partition(" imports ")[2].startswith(allowed)
    ]
    assert others == []


def test_value_heads_import_neither_cdserve_nor_vllm() -> None:
    assert imported("value_heads", "cdserve", "vllm") == []


@pytest.mark.parametrize("package", ["cdserve", "value_heads"])
def test_exported_names_are_sorted(package: str) -> None:
    exports = {file: names for file in modules(package) for names in exported(file)}
    assert exports
    assert exports == {file: sorted(names, key=_rank) for file, names in exports.items()}


def exported(file: Path) -> Iterator[list[str]]:
    """The file's ``__all__``, if it has one."""
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            yield ast.literal_eval(node.value)


def _rank(name: str) -> tuple[int, str]:
    """Constants, then classes, then functions, as ruff sorts them."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2, name)
