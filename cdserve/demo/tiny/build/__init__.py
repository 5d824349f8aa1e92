"""Makes the demo's artefacts: its language models, heads and report."""
