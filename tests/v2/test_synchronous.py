"""Every kind of row on model runner V2 without asynchronous scheduling is as with it."""

import pytest

from .compare import differences
from .conftest import Running
from .kinds import HEADS, MEMBERS

pytestmark = pytest.mark.v2


def test_steps_are_not_scheduled_ahead(synchronous: Running) -> None:
    assert synchronous.made["engine"]["asynchronous"] is False


@pytest.mark.parametrize("run", ["first", "cached"])
@pytest.mark.parametrize("kind", {**HEADS, **MEMBERS})
def test_rows_match_those_of_asynchronous_scheduling(
    v2: Running, synchronous: Running, kind: str, run: str
) -> None:
    assert differences(v2.made[run][kind], synchronous.made[run][kind]) == []
