"""A package that every process finds through PYTHONPATH; `tests.v2.mode` sets that.

Its entry points do the work. Triton takes it for a CPU backend, which is the condition that vLLM
sets for model runner V2 on a CPU. vLLM calls ``plugin.turn_on`` in each of its processes.
"""
