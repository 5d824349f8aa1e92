"""The operator's functions: imported by name, and called in threads."""

import asyncio
import importlib
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from cdserve.errors import ConfigError, RewardFailure

_THREADS = 16
"""Concurrent calls of one function."""

T = TypeVar("T")


def imported(key: str, path: str) -> Callable[..., Any]:
    """The function of a setting.

    Args:
        key: path of the setting, for error messages.
        path: the function as ``module:function``.

    Raises:
        ConfigError: the function cannot be imported or is not callable.
    """
    module, name = path.split(":")
    try:
        function = vars(importlib.import_module(module))[name]
    except (ImportError, KeyError) as error:
        raise ConfigError(f"{key}: {path} cannot be imported: {error}") from error
    if not callable(function):
        raise ConfigError(f"{key}: {path} is not callable")
    loaded: Callable[..., Any] = function
    return loaded


class Threads:
    """Calls one function in threads, a limited number at the same time.

    After a timeout of the caller the thread runs to its end. Threads that never end block further
    calls of this function only, and not the server's exit.
    """

    def __init__(self) -> None:
        self._free = asyncio.Semaphore(_THREADS)

    async def run(self, call: Callable[[], T]) -> T:
        """Result of ``call``, computed in a thread.

        Raises:
            RewardFailure: the call raised SystemExit, StopIteration or another exception that a
                future cannot pass on.
        """
        await self._free.acquire()
        result: Future[T] = Future()
        running = asyncio.wrap_future(result)
        running.add_done_callback(lambda _: self._free.release())
        arguments = call, result
        threading.Thread(target=_set_result, args=arguments, name="function", daemon=True).start()
        return await asyncio.shield(running)


def _set_result(call: Callable[[], T], result: "Future[T]") -> None:
    try:
        result.set_result(call())
    except BaseException as error:
        # A future cannot hold a StopIteration, and a SystemExit would end the server.
        harmless = isinstance(error, Exception) and not isinstance(error, StopIteration)
        reason = f"failed with {type(error).__name__}"
        result.set_exception(error if harmless else RewardFailure(reason, repr(error)))
