"""The program ``cdserve``, also as ``python -m cdserve``."""

from cdserve import interrupts


def main() -> None:
    """Runs a command; Ctrl-C ends it without a traceback, also while modules are imported."""
    interrupts.end_at_once()
    from cdserve import cli

    cli.main()


if __name__ == "__main__":  # vLLM's spawned processes import this module again
    main()
