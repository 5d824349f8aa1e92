"""A client of the server's own API: prompts sent under policies, answers kept on disk."""
