"""``python -m cdserve.testing``: ``cdserve serve`` on a ``FakeEngine``, which loads no weights.

It takes the arguments of ``cdserve serve``. Reward models of the settings run as they do there.
"""

import sys

from cdserve.cli import parser, served_settings
from cdserve.errors import ConfigError, EngineError
from cdserve.launch.application import Application
from cdserve.launch.serve import serve
from cdserve.testing.engine import build_engine


def main() -> None:
    """Serves the settings on a ``FakeEngine`` until SIGINT or SIGTERM."""
    known, flags = parser().parse_known_args(["serve", *sys.argv[1:]])
    try:
        application = Application.build(*served_settings(known), flags)
        if (application.args.api_server_count or 1) > 1:
            raise ConfigError("--api-server-count: a FakeEngine has one API server")
        serve(application, build_engine)
    except (ConfigError, EngineError) as error:
        sys.exit(f"cdserve: {error}")


if __name__ == "__main__":
    main()
