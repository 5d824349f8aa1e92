"""The operator's guide: its arithmetic and its references."""

import contextlib
import io
import re

from cdserve.config import Settings

from .files import ROOT

GUIDE = ROOT / "docs" / "deploy.md"


def test_sizing_output_matches_its_code() -> None:
    text = GUIDE.read_text()
    ((code, printed),) = re.findall(
        r"^```python\n(.*?)^```\n\n```text\n(.*?)^```", text, re.MULTILINE | re.DOTALL
    )
    with contextlib.redirect_stdout(io.StringIO()) as output:
        exec(compile(code, str(GUIDE), "exec"), {})
    assert output.getvalue() == printed


def test_files_named_in_the_guide_exist() -> None:
    named = re.findall(r"\bdeploy/[\w./-]+\w", GUIDE.read_text())
    assert len(set(named)) > 5
    for path in named:
        assert (ROOT / path).exists(), path


def test_settings_named_in_the_guide_exist() -> None:
    schema = Settings.model_json_schema()["$defs"]
    for section, key in re.findall(r"`(limits|admission)\.(\w+)`", GUIDE.read_text()):
        assert key in schema[section.capitalize()]["properties"], f"{section}.{key}"
