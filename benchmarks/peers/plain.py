"""A plain vLLM server of the demo's model, without cdserve and its heads."""

import sys

import yaml

from benchmarks.server import Server, free_port
from cdserve.demo.tiny import DEMO_DIR, MODEL_DIR
from cdserve.engine.vllm import as_flags

_ONE_PROCESS = "vllm.v1.executor.uniproc_executor.UniProcExecutor"


class PlainServer(Server):
    """vLLM's own API server with the demo's engine settings; a context manager.

    It loads no plugin. As with cdserve, the engine and its worker share one process.
    """

    def __init__(self) -> None:
        port = free_port()
        settings = yaml.safe_load((DEMO_DIR / "cdserve.yaml").read_text())
        self.base_url = f"http://127.0.0.1:{port}"
        self._command = [
            *("env", "VLLM_PLUGINS=", sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
            *("--model", str(MODEL_DIR), "--served-model-name", settings["served_model_name"]),
            *("--host", "127.0.0.1", "--port", str(port), "--disable-uvicorn-access-log"),
            *("--distributed-executor-backend", _ONE_PROCESS, *as_flags(settings["engine"])),
        ]
