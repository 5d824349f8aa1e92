"""cdserve's errors as vLLM's, which its handlers put into OpenAI's shape."""

from collections.abc import Iterator
from contextlib import contextmanager

from vllm.exceptions import VLLMServerError, VLLMValidationError

from cdserve.errors import PolicyError, ScoringError
from cdserve.metrics import REFUSED


@contextmanager
def as_vllm_errors() -> Iterator[None]:
    """Turns a PolicyError into a 400 that names the field, and a ScoringError into a 500."""
    try:
        yield
    except PolicyError as error:
        REFUSED.inc()
        raise VLLMValidationError(str(error), parameter=error.param) from error
    except ScoringError as error:
        raise VLLMServerError(str(error)) from error
