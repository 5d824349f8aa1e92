"""A signal while the engine starts ends the server."""

import os
import signal

import pytest
import zmq
from vllm.utils.network_utils import zmq_socket_ctx

from cdserve.launch import serve
from tests.waiting import HANG_SECONDS


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_during_the_engine_start_ends_the_server(number: signal.Signals) -> None:
    """vLLM waits for its engine inside this context, which ends a KeyboardInterrupt quietly."""
    before = signal.signal(number, serve._interrupt)
    try:
        with pytest.raises(SystemExit) as ended:
            _wait_and_be_told(number)
    finally:
        signal.signal(number, before)
    assert ended.value.code == 128 + number


def _wait_and_be_told(number: signal.Signals) -> None:
    with zmq_socket_ctx("inproc://engine", zmq.ROUTER, bind=True) as socket:
        os.kill(os.getpid(), number)
        socket.poll(timeout=HANG_SECONDS * 1000)
