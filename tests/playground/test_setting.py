"""The setting ``playground``: the page, its example prompts, and what ``GET /`` answers."""

from argparse import Namespace
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from pydantic import ValidationError

from cdserve import __version__
from cdserve.api.endpoints import AlignmentEndpoints
from cdserve.config import Settings


def application(playground: Any) -> FastAPI:
    """cdserve's routes under the setting."""
    app = FastAPI()
    content = {"model": "any", "rewards": {"brief": {"kind": "length", "target": 9}}}
    settings = Settings.model_validate({**content, "playground": playground})
    app.state.args = Namespace(cdserve=Namespace(default=Namespace(settings=settings)))
    AlignmentEndpoints().attach_router(app)
    return app


@pytest.mark.parametrize("playground", [True, False, {"examples": []}])
def test_playground_can_be_turned_off(playground: Any) -> None:
    paths = {getattr(route, "path", None) for route in application(playground).routes}
    assert "/v1/alignment" in paths
    assert ("/playground" in paths) == (playground is not False)
    assert ("/playground/{name}" in paths) == (playground is not False)


@pytest.mark.parametrize(
    ("playground", "published"),
    [
        (True, {"examples": [], "gold": None}),
        ({}, {"examples": [], "gold": None}),
        ({"examples": ["One.", "Two."], "gold": "brief"},) * 2,
    ],
)
def test_playground_publishes_its_settings(playground: Any, published: Any) -> None:
    http = TestClient(application(playground))
    assert http.get("/playground/settings.json").json() == published


def test_playground_gold_that_is_not_a_reward_is_refused() -> None:
    with pytest.raises(ValidationError, match="'brif', not a reward; rewards: brief"):
        application({"gold": "brif"})


def test_root_redirects_to_the_playground_behind_a_path_prefix_too() -> None:
    http = TestClient(application(True), base_url="http://test", follow_redirects=False)
    answer = http.get("/")
    assert answer.status_code == 307
    assert answer.headers["location"] == "playground"


def test_root_names_the_server_if_the_playground_is_off() -> None:
    http = TestClient(application(False))
    assert http.get("/").json() == {"server": "cdserve", "version": __version__}
    assert http.get("/playground").status_code == 404
