"""A client of the server: sends prompts under policies and keeps the answers on disk."""
