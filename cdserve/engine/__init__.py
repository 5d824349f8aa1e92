"""The life of a request: AlignedEngine, candidates, and results read from the worker."""
