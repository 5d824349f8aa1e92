"""Training of heads: rollouts from the engine, their states, the fit, the report."""
