"""Code inside vLLM's worker process: model wrapper, row table, scoring, steering, scheduler."""
