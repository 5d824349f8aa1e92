"""Figures of a value head on held-out responses, from the ``report.json`` in its folder."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cdserve.decoders.candidate import Outlook


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """Rest of held-out responses after unfinished prefixes, by the length of the prefix.

    Attributes:
        lengths: lengths of the prefixes in tokens, ascending; the geometric middle of each bucket.
        outlooks: outlook at each of them, in reward units.
    """

    lengths: Sequence[float]
    outlooks: Sequence[Outlook]

    @classmethod
    def read(cls, folder: Path, output: str) -> "HeldOut | None":
        """Figures of one output of the head in a folder; None if its report has none.

        ``cdserve heads train`` writes the report; heads of older versions have none, and so have
        imported heads and heads that learned from pairs.
        """
        try:
            report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
            buckets = report["held_out"]["rewards"][output]["remaining"]
            lengths = [(bucket["low"] * (bucket["high"] - 1)) ** 0.5 for bucket in buckets]
            outlooks = [
                Outlook(
                    tokens=float(bucket["tokens"]),
                    deviation=float(bucket["change"]),
                    gains=[float(gain) for gain in bucket["gains"]],
                )
                for bucket in buckets
            ]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return cls(lengths=lengths, outlooks=outlooks) if lengths else None

    def at(self, tokens: int) -> Outlook:
        """Outlook after a prefix of ``tokens`` >= 1 tokens, interpolated in the log of the length.

        Outside the measured lengths it is that of the nearest one.
        """
        log_lengths, place = np.log(self.lengths), np.log(tokens)

        def interpolated(figures: Sequence[float]) -> float:
            return float(np.interp(place, log_lengths, figures))

        return Outlook(
            tokens=interpolated([outlook.tokens for outlook in self.outlooks]),
            deviation=interpolated([outlook.deviation for outlook in self.outlooks]),
            gains=[
                interpolated(gains)
                for gains in zip(*(outlook.gains for outlook in self.outlooks), strict=False)
            ],
        )
