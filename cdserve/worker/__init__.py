"""What runs inside vLLM's worker: the model wrapper, the logits processor, the row table."""
