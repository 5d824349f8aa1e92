"""What a server has used since it started: CPU time by role, and tokens by its own counters."""

from dataclasses import dataclass, fields

import httpx2
import psutil
from server import runs_model, totals


@dataclass(frozen=True, slots=True)
class Usage:
    """Totals, or with ``since`` what was used in between.

    Attributes:
        engine_s: CPU seconds of the processes that run the model.
        front_end_s: CPU seconds of the others: HTTP, tokenizing, the search loops.
        candidate_tokens: of ``cdserve_candidate_tokens_total``, over all methods.
        generated_tokens: of ``vllm:generation_tokens_total``, plain requests' among them.
    """

    engine_s: float
    front_end_s: float
    candidate_tokens: float
    generated_tokens: float

    @classmethod
    def of(cls, base_url: str, pid: int) -> "Usage":
        """What a server has used until now, by its address and its first process."""
        root = psutil.Process(pid)
        seconds = {True: 0.0, False: 0.0}
        for process in (root, *root.children(recursive=True)):
            times = process.cpu_times()
            seconds[runs_model(process)] += times.user + times.system
        counted = totals(httpx2.get(f"{base_url}/metrics", timeout=60).text)
        return cls(
            engine_s=seconds[True],
            front_end_s=seconds[False],
            candidate_tokens=counted["cdserve_candidate_tokens_total", ""],
            generated_tokens=counted["vllm:generation_tokens_total", ""],
        )

    def since(self, before: "Usage") -> "Usage":
        """The differences."""
        names = [field.name for field in fields(self)]
        return Usage(*(getattr(self, name) - getattr(before, name) for name in names))
