"""The HTTP API: request classes, routes, streaming, API keys and errors."""
