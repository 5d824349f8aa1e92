"""API keys from the environment."""

import pytest

from cdserve.api.keys import Keys
from cdserve.api.server import AlignmentServer
from cdserve.config import Key, Settings
from cdserve.errors import ConfigError


def test_equal_api_keys_are_refused_with_both_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIRST_KEY", "sk-1")
    monkeypatch.setenv("SECOND_KEY", "sk-1")
    keys = {"a": Key(api_key_env="FIRST_KEY"), "b": Key(api_key_env="SECOND_KEY")}
    server = AlignmentServer.build(Settings(model="m", keys=keys), {}, {})
    with pytest.raises(ConfigError, match=r"keys\.b\.api_key_env names SECOND_KEY.* of keys\.a;"):
        Keys.build(server)
