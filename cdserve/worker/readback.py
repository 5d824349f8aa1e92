"""Asynchronous copies of results from the device to the host."""

from collections import deque
from collections.abc import Callable
from threading import RLock
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Deliver = Callable[[npt.NDArray[np.float32]], object]


class _Result(NamedTuple):
    copy: Tensor
    copied: torch.cuda.Event | None
    deliver: Deliver


class ReadBack:
    """A queue of results, delivered in the order of submission.

    Copies are queued on the device behind the kernels that compute them, so no step waits for them.
    They are delivered together with the step's output (``worker.worker``), for which vLLM waits in
    the same way.
    """

    def __init__(self) -> None:
        self._results = deque[_Result]()
        self._delivered = 0
        self._lock = RLock()  # vLLM reads outputs in another thread

    @property
    def count(self) -> int:
        """Number of results ever submitted."""
        with self._lock:
            return self._delivered + len(self._results)

    def submit(self, result: Tensor, deliver: Deliver) -> None:
        """Queues the copy of a float32 tensor; ``deliver`` is called with it by ``flush``."""
        copy, copied = result.to("cpu", non_blocking=True), None
        if result.is_cuda:
            copied = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            copied.record()
        with self._lock:
            self._results.append(_Result(copy, copied, deliver))

    def flush(self, count: int) -> None:
        """Delivers results until ``count`` of those ever submitted are delivered."""
        with self._lock:
            while self._delivered < count:
                copy, copied, deliver = self._results.popleft()
                self._delivered += 1
                if copied is not None:
                    copied.synchronize()
                deliver(copy.numpy())


READ_BACK = ReadBack()
"""The results of this worker process."""
