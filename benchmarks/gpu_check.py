"""Whether cdserve works on this GPU, and how fast: one JSON object to post.

    python benchmarks/gpu_check.py --out gpu.json

1 environment: GPU, versions, model runner, CUDA graphs, asynchronous scheduling
2 answers: the demo under every kind of policy against Transformers on the CPU, and a law
3 graphs: the same requests with CUDA graphs and without
4 syncs: no step waits for the device because of cdserve (`VLLM_GPU_SYNC_CHECK`)
5 kernels: their times beside those of the bytes they move
6 steps: what values, tilts and mixtures add to a step of the engine

Each part is a process of its own. One that fails, hangs or crashes leaves the others; the object
has the last lines of what it printed. Progress goes to stderr. The exit status is 0 if all parts
that were asked for are ok, 1 if one is not, 2 without a GPU. `--device cpu` runs what needs none,
in small sizes: it tests this script and says nothing of a GPU.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import deque
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
from gpu.served import Setup

_TOLD = 40
"""Lines of a part's output that stand for its error."""


class Part(NamedTuple):
    """A module of `gpu` with a ``check``, and the seconds that it may take on a GPU."""

    name: str
    module: str
    seconds: int


PARTS = {
    1: Part("environment", "gpu.environment", 240),
    2: Part("answers", "gpu.answers", 240),
    3: Part("graphs", "gpu.graphs", 300),
    4: Part("syncs", "gpu.syncs", 180),
    5: Part("kernels", "gpu.kernel_times", 180),
    6: Part("steps", "gpu.steps", 240),
}
"""Their limits are several times what they should take; all together have ``--minutes``."""
_CPU_SECONDS = 1800
"""That a part may take on a CPU."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the parts and prints the object; the exit status."""
    known = parser()
    args = known.parse_args(arguments)
    if args.url and args.device != "cpu":
        known.error("--url needs --device cpu: on a GPU the parts start servers of their own")
    setup = Setup(args.device, args.url)
    if args.alone:
        return alone(PARTS[args.alone], setup, args.out)
    if setup.cuda and not torch.cuda.is_available():
        message = "PyTorch finds no GPU; `--device cpu` tests this script without one"
        print(f"gpu_check.py: {message}", file=sys.stderr)
        return 2
    ends = time.monotonic() + 60 * (args.minutes or (10 if setup.cuda else 60))
    made = {"command": "gpu_check.py", "device": args.device, "parts": {}}
    for number in args.parts:
        made["parts"][PARTS[number].name] = run(number, setup, ends)
    made["ok"] = all(part["ok"] is not False for part in made["parts"].values())
    text = json.dumps(made, indent=2)
    if args.out:
        args.out.write_text(text + "\n")
    else:
        print(text)
    return 0 if made["ok"] else 1


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument(
        "--parts", type=_parts, default=list(PARTS), help="such as 2,5; all if absent"
    )
    made.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    made.add_argument("--minutes", type=float, help="for all parts: 10; on a CPU 60")
    made.add_argument("--url", help="of a served demo, for parts 2 and 3 on a CPU")
    made.add_argument("--out", type=Path, help="where the object goes instead of stdout")
    made.add_argument("--alone", type=int, choices=PARTS, help=argparse.SUPPRESS)
    return made


def _parts(text: str) -> list[int]:
    chosen = sorted({int(number) for number in text.split(",")})
    unknown = [number for number in chosen if number not in PARTS]
    if unknown:
        raise argparse.ArgumentTypeError(
            f"part {unknown[0]}; there are {min(PARTS)} to {max(PARTS)}"
        )
    return chosen


def run(number: int, setup: Setup, ends: float) -> dict[str, Any]:
    """A part in a process of its own: its figures, and ``ok``; or the error that ended it.

    Args:
        ends: the monotonic time at which all parts have to be over.
    """
    part = PARTS[number]
    limit = min(part.seconds if setup.cuda else _CPU_SECONDS, ends - time.monotonic())
    if limit <= 0:
        return {"ok": False, "error": ["no time was left for it"]}
    print(f"{number} {part.name} ...", file=sys.stderr, flush=True)
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="cdserve-gpu-check-") as folder:
        out = Path(folder) / "part.json"
        error = _run(number, setup, out, limit)
        made = json.loads(out.read_text()) if out.exists() else {"ok": False}
    if error:
        made = {**made, "ok": False, "error": error}
    made["seconds"] = round(time.monotonic() - start, 1)
    print(f"{number} {part.name}: {_word(made)}, {made['seconds']} s", file=sys.stderr, flush=True)
    return made


def _run(number: int, setup: Setup, out: Path, limit: float) -> list[str]:
    """Runs a part's process; the last lines of what it printed, where it did not end well."""
    command = [sys.executable, __file__, "--alone", str(number), "--device", setup.device]
    command += ["--out", str(out), *(["--url", setup.url] if setup.url else [])]
    process = subprocess.Popen(
        command,
        env=os.environ | _environment(number, setup),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    lines = deque[str](maxlen=_TOLD)
    reader = threading.Thread(target=_forward, args=(process, lines), daemon=True)
    reader.start()
    try:
        status = process.wait(limit)
    except subprocess.TimeoutExpired:
        status = None
    finally:
        _end(process)
    reader.join(10)
    if status is None:
        return [*lines, f"it took more than its {limit:.0f} s"]
    if status:
        return [*lines, f"its process ended with status {status}"]
    return []


def _environment(number: int, setup: Setup) -> Mapping[str, str]:
    """What a part's processes have in theirs."""
    if setup.cuda:
        return {}
    few = {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    own = {name: os.environ.get(name, value) for name, value in few.items()}
    interpreted = {"TRITON_INTERPRET": "1"} if PARTS[number].name == "kernels" else {}
    return {**own, **interpreted, "CUDA_VISIBLE_DEVICES": ""}


def _forward(process: subprocess.Popen[str], lines: deque[str]) -> None:
    """Shows what a part prints, and keeps the end of it."""
    for line in process.stdout or ():
        lines.append(line.rstrip())
        print(f"  {lines[-1]}", file=sys.stderr, flush=True)


def _end(process: subprocess.Popen[str]) -> None:
    """Kills what is left of a part: it and the servers it started are one process group."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


def _word(made: Mapping[str, Any]) -> str:
    return "skipped" if made["ok"] is None else "ok" if made["ok"] else "NOT OK"


def alone(part: Part, setup: Setup, out: Path) -> int:
    """Runs a part in this process, and writes what it made."""
    try:
        made = import_module(part.module).check(setup)
    except Exception:
        traceback.print_exc()
        return 1
    out.write_text(json.dumps(made))
    return 0


if __name__ == "__main__":
    # As Ctrl-C does: a part and its servers end with the check.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    sys.exit(main())
