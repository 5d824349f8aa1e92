"""A decoder and a reward for cdserve."""
