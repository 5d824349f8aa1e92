"""The start of a server: settings in, running processes out."""
