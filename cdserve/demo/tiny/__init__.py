"""The demo: a small language model of reviews, with a value head, members and held-out prompts.

Importing this package is light. ``python -m cdserve.demo.tiny.build`` makes the artefacts again.
"""

from pathlib import Path

DEMO_DIR = Path(__file__).parent
ARTIFACTS_DIR = DEMO_DIR / "artifacts"
MODEL_DIR = ARTIFACTS_DIR / "model"
HEAD_DIR = ARTIFACTS_DIR / "heads" / "sentiment"
Q_HEAD_DIR = ARTIFACTS_DIR / "heads" / "sentiment-q"
TUNED_DIR = ARTIFACTS_DIR / "members" / "tuned"
REF_DIR = ARTIFACTS_DIR / "members" / "ref"
REPORT_PATH = ARTIFACTS_DIR / "report.json"
PROMPTS_PATH = DEMO_DIR / "prompts.jsonl"

__all__ = [
    "ARTIFACTS_DIR",
    "DEMO_DIR",
    "HEAD_DIR",
    "MODEL_DIR",
    "PROMPTS_PATH",
    "Q_HEAD_DIR",
    "REF_DIR",
    "REPORT_PATH",
    "TUNED_DIR",
]
