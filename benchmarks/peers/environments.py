"""An environment for each peer that is a package."""

from benchmarks.environments import Environment

ITS_HUB = Environment("its_hub", ("its_hub[lm]==1.2.0",), shown=("its_hub", "aiohttp"))

# All that optillm imports to answer with `bon`. Its other approaches also want torch with CUDA,
# spaCy, Gradio, Selenium and more, and are left out by optillm itself where these are missing.
OPTILLM = Environment(
    "optillm",
    (
        *("aiohttp", "cerebras_cloud_sdk", "flask", "math-verify", "networkx", "numpy", "openai"),
        *("pyyaml", "requests", "sympy", "z3-solver<=4.15.4.0"),
    ),
    alone=("optillm==0.4.0",),
    shown=("optillm", "openai"),
)
