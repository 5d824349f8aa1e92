"""Modules, classes and functions that the page on architecture names exist."""

import re

from .blocks import ROOT
from .modules import names

PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
OF_VLLM = {"AsyncLLM", "EngineCore", "FastAPI", "SamplingParams", "ZMQ"}


def test_names_after_a_module_path_are_defined_in_that_module() -> None:
    references = re.findall(r"`([\w/]+\.py):([\w.]+)`", PAGE)
    assert len(references) > 40
    for path, name in references:
        folder = ROOT if path.startswith("value_heads/") else ROOT / "cdserve"
        assert name in names(folder / path), f"{path}:{name}"


def test_class_names_exist_in_the_code() -> None:
    modules = [*(ROOT / "cdserve").rglob("*.py"), *(ROOT / "value_heads").rglob("*.py")]
    known = frozenset[str]().union(*(names(module) for module in modules))
    words = set(re.findall(r"\b[A-Z]\w*[a-z]\w*[A-Z]\w*", re.sub(r"\]\([^)]*\)", "]", PAGE)))
    assert words - known - OF_VLLM - {"OpenAI", "OpenTelemetry"} == set()


def test_every_package_is_in_the_tree() -> None:
    tree = PAGE.partition("## Processes")[0]
    packages = {file.parent.name for file in (ROOT / "cdserve").glob("*/__init__.py")}
    assert {name for name in packages if f"{name}/" not in tree} == set()
