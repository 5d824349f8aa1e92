"""The demo as `cdserve serve` serves it, and requests to it."""

import asyncio
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
from server import Server

from cdserve.demo.tiny import DEMO_DIR

_BENCHMARKS = Path(__file__).parents[1]
_TIMEOUT = 600
_ERROR = re.compile(r"^.*?((?:\w+\.)*\w*(?:Error|Exception): .+)$", re.MULTILINE)
DPO_BETA = 0.5
LIKELIHOODS = {
    "fluent": "{kind: loglik}",
    "dpo": f"{{kind: log_ratio, tuned: tuned, reference: ref, beta: {DPO_BETA}}}",
}
"""Rewards that the check adds to the demo's own."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What a part is run on."""

    device: str
    """``cuda`` or ``cpu``."""
    url: str | None = None
    """Of a server of the demo that runs already; None to start one."""

    @property
    def cuda(self) -> bool:
        """Whether it is a GPU."""
        return self.device == "cuda"


@contextmanager
def serving(setup: Setup, config: Path, *flags: str) -> Iterator[str]:
    """Serves a configuration with the probe in its worker; gives the address.

    The demo's and the benchmarks' settings turn CUDA graphs off. On a GPU they are on here.
    """
    os.environ["VLLM_SERVER_DEV_MODE"] = "1"  # the route that calls the probe
    paths = [str(_BENCHMARKS), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    graphs = ["--set", "engine.enforce_eager=false"] if setup.cuda else []
    server = Server(config, "--worker-extension-cls", "gpu.probe.Probe", *graphs, *flags)
    try:
        with server:
            yield server.base_url
    except Exception as error:
        # The end of the log is the API server's. The cause is the engine's, and comes before.
        causes = _ERROR.findall(Path(server.log.name).read_text(errors="replace"))
        error.add_note("\n".join(["errors in the server's log:", *dict.fromkeys(causes)][:20]))
        raise


@contextmanager
def demo(setup: Setup, *flags: str) -> Iterator[str]:
    """Serves the demo with rewards of log-likelihoods beside its own; gives the address."""
    if setup.url is not None:
        yield setup.url
        return
    rewards = [x for n, reward in LIKELIHOODS.items() for x in ("--set", f"rewards.{n}={reward}")]
    with serving(setup, DEMO_DIR / "cdserve.yaml", *rewards, *flags) as url:
        yield url


def probe(url: str, method: str, *arguments: str) -> Any:
    """Calls a method of the probe in the server's worker."""
    body = {"method": method, "args": arguments}
    answer = httpx2.post(f"{url}/collective_rpc", json=body, timeout=_TIMEOUT)
    return _content(answer)["results"][0]


def at_once(url: str, bodies: Sequence[dict[str, Any]], route: str = "/v1/completions") -> Any:
    """Answers to requests that are sent together, in their order."""
    return asyncio.run(posted(url, bodies, route))


async def posted(url: str, bodies: Sequence[dict[str, Any]], route: str) -> list[Any]:
    """As ``at_once``."""
    limits = httpx2.Limits(max_connections=None)
    async with httpx2.AsyncClient(base_url=url, timeout=_TIMEOUT, limits=limits) as client:
        answers = await asyncio.gather(*(client.post(route, json=body) for body in bodies))
    return [_content(answer) for answer in answers]


def _content(answer: httpx2.Response) -> Any:
    if answer.status_code != 200:
        raise RuntimeError(f"{answer.url} answers {answer.status_code}: {answer.text[:1000]}")
    return answer.json()
