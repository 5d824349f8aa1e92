"""The processes of a killed server end; test_tensor_parallel.py kills one with two workers."""

from pathlib import Path

from .killing import gone, kill, load, started
from .served import Served, demo_settings


def test_busy_engine_and_api_servers_end_with_a_killed_server(tmp_path: Path) -> None:
    settings = demo_settings(members={}, presets={})
    with Served(settings, tmp_path, ["--api-server-count", "2"]) as served:
        processes = started(served)
        load(served)
        kill(served)
        assert gone(processes) == []
