"""Names that modules of the repository define, without importing them."""

import ast
from functools import cache
from pathlib import Path

from .blocks import ROOT


@cache
def names(module: Path) -> frozenset[str]:
    """Top-level names of a module, and ``Class.method`` for each method."""
    defined: set[str] = set()
    for node in ast.parse(module.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign):
            defined |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        if isinstance(node, ast.ImportFrom):
            defined |= {alias.asname or alias.name for alias in node.names}
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            defined.add(node.name)
        if isinstance(node, ast.ClassDef):
            functions = (ast.FunctionDef, ast.AsyncFunctionDef)
            defined |= {f"{node.name}.{f.name}" for f in node.body if isinstance(f, functions)}
    return frozenset(defined)


def exists(dotted: str) -> bool:
    """Whether a dotted name is a package, a module, or a name that one of them defines."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        place = ROOT.joinpath(*parts[:length])
        module = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
        if module.is_file():
            rest = ".".join(parts[length:])
            return not rest or rest in names(module)
        if place.is_dir():
            return length == len(parts)
    return False
