"""The KL of requests that resume after a preemption."""

from cdserve.worker.readback import READ_BACK
from cdserve.worker.request import WorkerRequest
from cdserve.worker.tables import read


def path_kl_so_far(request: WorkerRequest, prompt_length: int, tokens: int) -> tuple[float, int]:
    """KL of the request's path so far in nats, and steps that the budget left unsteered.

    Args:
        prompt_length: length of the prompt in tokens.
        tokens: prompt and drawn tokens so far; more than the prompt after a preemption.
    """
    if request.path_kl is None or tokens <= prompt_length:
        return 0.0, 0
    READ_BACK.flush(READ_BACK.count)  # results of the last steps may still be in flight
    row = read(request.path_kl, 2, tokens)
    return (0.0, 0) if row is None else (float(row[0]), int(row[1]))
