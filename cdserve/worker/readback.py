"""Results on their way from the device to the host, for which no step waits."""

from collections import deque
from collections.abc import Callable
from threading import RLock
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Taken = Callable[[npt.NDArray[np.float32]], object]


class _Result(NamedTuple):
    copy: Tensor
    copied: torch.cuda.Event | None
    taken: Taken


class ReadBack:
    """Results of steps, handed over in the order in which they were put.

    Their copies are queued behind the kernels that make them, so that a step goes on to its sampler
    and vLLM to its next step; they are handed over with the step's output (`plugin.worker`), which
    vLLM waits for in the same way.
    """

    def __init__(self) -> None:
        self._results = deque[_Result]()
        self._handed_over = 0
        self._lock = RLock()  # vLLM reads outputs in another thread

    @property
    def count(self) -> int:
        """Results that were ever put."""
        with self._lock:
            return self._handed_over + len(self._results)

    def submit(self, result: Tensor, taken: Taken) -> None:
        """Has ``taken`` called with the result, a float32 tensor, when it is handed over."""
        copy, copied = result.to("cpu", non_blocking=True), None
        if result.is_cuda:
            copied = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            copied.record()
        with self._lock:
            self._results.append(_Result(copy, copied, taken))

    def flush(self, count: int) -> None:
        """Hands over the first ``count`` results ever put, as far as they are not yet."""
        with self._lock:
            while self._handed_over < count:
                copy, copied, taken = self._results.popleft()
                self._handed_over += 1
                if copied is not None:
                    copied.synchronize()
                taken(copy.numpy())


READ_BACK = ReadBack()
"""Of the worker's process, whose steps come one after the other."""
