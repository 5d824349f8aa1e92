"""The operator's setting decides whether there is a playground."""

from argparse import Namespace

import pytest
from fastapi import FastAPI

from cdserve.api.endpoints import AlignmentEndpoints
from cdserve.config import Settings


@pytest.mark.parametrize("playground", [True, False])
def test_playground_can_be_turned_off(playground: bool) -> None:
    app = FastAPI()
    default = Namespace(settings=Settings(model="any", playground=playground))
    app.state.args = Namespace(cdserve=Namespace(default=default))
    AlignmentEndpoints().attach_router(app)
    paths = {getattr(route, "path", None) for route in app.routes}
    assert "/v1/alignment" in paths
    assert ("/playground" in paths) == playground
    assert ("/playground/{name}" in paths) == playground
