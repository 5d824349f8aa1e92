"""cdserve: inference-time alignment decoding on vLLM. Importing it loads neither torch nor vllm."""

__version__ = "0.1.0"
