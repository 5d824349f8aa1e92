"""Trains the demo's heads and its ground truth from film reviews with human labels."""
