"""What happens once, at start: from settings to a running server."""
