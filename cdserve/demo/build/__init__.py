"""Makes the demo's artefacts: its language models, heads, rollouts and report."""
