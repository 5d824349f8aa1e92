"""The demos: a real language model of English, and a tiny one whose reward is exact.

Importing this package is light. ``python -m cdserve.demo.build`` trains the heads again.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

NAMES = ("smollm2", "tiny")
DEMO_DIR = Path(__file__).parent


class DemoSettings(NamedTuple):
    """Settings of a server to start.

    Attributes:
        config: YAML file of the settings; None for no file.
        changes: ``key=value`` pairs that override the file.
    """

    config: Path | None
    changes: Sequence[str]


def settings(name: str) -> DemoSettings:
    """The settings of a demo of ``NAMES``; the first call for "smollm2" fetches its model.

    Raises:
        ConfigError: the model cannot be fetched.
    """
    if name == "tiny":
        from cdserve.demo import tiny

        return DemoSettings(tiny.DEMO_DIR / "cdserve.yaml", ())
    from cdserve.demo.model import model_dir

    template = DEMO_DIR / "chat_template.jinja"
    changes = (f"model={model_dir()}", f"engine.chat_template={template}")
    return DemoSettings(DEMO_DIR / "cdserve.yaml", changes)
