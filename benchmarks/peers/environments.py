"""Virtual environments of the peers that are packages."""

from benchmarks.environments import Environment

ITS_HUB = Environment("its_hub", ("its_hub[lm]==1.2.0",), shown=("its_hub", "aiohttp"))

# The packages that optillm imports for `bon`. Its other approaches require torch with CUDA, spaCy,
# Gradio, Selenium and more; optillm disables them if these are missing.
OPTILLM = Environment(
    "optillm",
    (
        *("aiohttp", "cerebras_cloud_sdk", "flask", "math-verify", "networkx", "numpy", "openai"),
        *("pyyaml", "requests", "sympy", "z3-solver<=4.15.4.0"),
    ),
    alone=("optillm==0.4.0",),
    shown=("optillm", "openai"),
)

# The packages that ThinkBooster imports for beam search over HTTP. It pins vLLM 0.12, which this
# row does not use.
THINKBOOSTER = Environment(
    "thinkbooster",
    (*("lm-polygraph", "hydra-core", "openai", "parse", "pylatexenc", "sympy", "word2number"),),
    alone=("thinkbooster==0.1.1",),
    shown=("thinkbooster", "lm-polygraph"),
)
