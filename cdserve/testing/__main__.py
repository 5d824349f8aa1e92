"""``python -m cdserve.testing``: ``cdserve serve`` on a ``FakeEngine``, up in seconds.

It takes the arguments of ``cdserve serve``.
"""

import sys

from cdserve.cli import parser
from cdserve.launch.application import Application
from cdserve.launch.serve import serve
from cdserve.testing.engine import build_engine


def main() -> None:
    """Serves the settings on a ``FakeEngine`` until SIGINT or SIGTERM."""
    known, flags = parser().parse_known_args(["serve", *sys.argv[1:]])
    serve(Application.build(known.config, known.set, flags), build_engine)


if __name__ == "__main__":
    main()
