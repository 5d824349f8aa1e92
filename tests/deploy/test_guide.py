"""The operator's guide: its arithmetic, and what it refers to."""

import contextlib
import io
import re

from cdserve.config import Settings

from .files import ROOT

GUIDE = ROOT / "docs" / "deploy.md"


def test_the_sizing_is_what_its_code_prints() -> None:
    text = GUIDE.read_text()
    ((code, printed),) = re.findall(
        r"^```python\n(.*?)^```\n\n```text\n(.*?)^```", text, re.MULTILINE | re.DOTALL
    )
    with contextlib.redirect_stdout(io.StringIO()) as output:
        exec(compile(code, str(GUIDE), "exec"), {})
    assert output.getvalue() == printed


def test_the_files_that_it_names_are_there() -> None:
    named = re.findall(r"\bdeploy/[\w./-]+\w", GUIDE.read_text())
    assert len(set(named)) > 5
    for path in named:
        assert (ROOT / path).exists(), path


def test_the_settings_that_it_names_are_settings() -> None:
    schema = Settings.model_json_schema()["$defs"]
    for section, key in re.findall(r"`(limits|admission)\.(\w+)`", GUIDE.read_text()):
        assert key in schema[section.capitalize()]["properties"], f"{section}.{key}"
