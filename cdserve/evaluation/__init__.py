"""Policies of a served model compared: rewards, win-rates, KL, length, cost and latency."""
