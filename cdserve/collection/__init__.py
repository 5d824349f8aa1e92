"""Training data from a server's answers: collected once, written in TRL's formats."""
