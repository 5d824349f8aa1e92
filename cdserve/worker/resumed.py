"""Requests that come back from preemption, and the KL of their paths before it."""

from cdserve.worker.readback import READ_BACK
from cdserve.worker.request import WorkerRequest
from cdserve.worker.tables import read


def path_before(request: WorkerRequest | None, tokens: int) -> tuple[float, int]:
    """KL of the request's path so far, in nats, and its steps that a budget left unsteered.

    Args:
        tokens: those it has, which are more than its prompt's if it is back from preemption.
    """
    if request is None or request.path is None or tokens <= request.prompt_length:
        return 0.0, 0
    READ_BACK.hand_over(READ_BACK.count)  # the last steps' may be on their way
    found = read(request.path, 2, tokens)
    return (0.0, 0) if found is None else (float(found[0]), int(found[1]))
