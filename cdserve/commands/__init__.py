"""The commands other than ``cdserve serve``."""
