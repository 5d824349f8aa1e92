"""cdserve as a Ray Serve application: ``serve run cdserve.ray_serve:app``."""

from cdserve.ray_serve.deployment import NAME, app

__all__ = ["NAME", "app"]
