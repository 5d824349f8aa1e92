"""The commands beside ``cdserve serve``."""
