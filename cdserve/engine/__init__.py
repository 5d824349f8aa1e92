"""The seam to vLLM: AlignedEngine, candidates, values, launch."""
