"""``python -m cdserve`` is ``cdserve``."""

from cdserve.cli import main

if __name__ == "__main__":  # vLLM's spawned processes import this module again
    main()
