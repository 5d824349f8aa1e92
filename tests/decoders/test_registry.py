"""Decoders by name: the built-in ones always, installed ones only where the operator lists them."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cdserve.decoders import (
    BestOfN,
    BestOfPoisson,
    BlockwiseCD,
    Cards,
    LogitMixing,
    Rejection,
    SpeculativeRejection,
    TokenwiseCD,
    load,
)
from cdserve.errors import ConfigError

BUILT_IN = {
    "best_of_n": BestOfN,
    "best_of_poisson": BestOfPoisson,
    "blockwise_cd": BlockwiseCD,
    "cards": Cards,
    "logit_mixing": LogitMixing,
    "rejection": Rejection,
    "speculative_rejection": SpeculativeRejection,
    "tokenwise_cd": TokenwiseCD,
}
MODULE = "greedy_by_others"
SOURCE = """
from typing import Literal

from cdserve.decoders import Argmax, search
from cdserve.policy import Policy


class GreedyPolicy(Policy):
    method: Literal["greedy"]

    @property
    def width(self):
        return 1


class Greedy:
    policy = GreedyPolicy

    @classmethod
    def run(cls, policy, proposal, seed):
        return search(proposal, k=1, m=None, select=Argmax())


class WithoutPolicy:
    run = None


class WithoutRun:
    policy = GreedyPolicy


class WithoutWidth(Greedy):
    class policy(Policy):
        method: Literal["greedy"]
"""

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Installs a package with one decoder, under a name of the test's choosing."""

    def installed(decoder: str, package: str = "others", target: str = f"{MODULE}:Greedy") -> None:
        folder = tmp_path / package
        info = folder / f"{package}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[cdserve.decoders]\n{decoder} = {target}\n")
        (folder / f"{MODULE}.py").write_text(SOURCE)
        monkeypatch.syspath_prepend(folder)

    yield installed
    sys.modules.pop(MODULE, None)


def test_built_in_decoders_are_loaded_by_default() -> None:
    assert load([]) == BUILT_IN


def test_installed_decoder_is_loaded_if_listed(install: Install) -> None:
    install("greedy")
    found = load(["greedy"])
    assert list(found) == [*load([]), "greedy"]
    assert found["greedy"].policy.model_validate({"method": "greedy"}).method == "greedy"


def test_installed_decoder_is_not_imported_unless_listed(install: Install) -> None:
    install("greedy")
    assert "greedy" not in load([])
    assert MODULE not in sys.modules


def test_listing_a_decoder_leaves_built_in_decoders_unchanged(install: Install) -> None:
    install("greedy")
    load(["greedy"])
    assert load([]) == BUILT_IN


def test_load_rejects_a_name_that_is_not_installed(install: Install) -> None:
    install("greedy")
    with pytest.raises(ConfigError, match=r"'gredy' is not installed.*cdserve\.decoders.*greedy"):
        load(["gredy"])


def test_load_rejects_a_built_in_name(install: Install) -> None:
    install("best_of_n")
    with pytest.raises(ConfigError, match=r"'best_of_n', .* of others, has the name"):
        load(["best_of_n"])


def test_load_rejects_a_name_installed_by_two_packages(install: Install) -> None:
    install("greedy", package="others")
    install("greedy", package="elsewhere")
    with pytest.raises(ConfigError, match=r"'greedy' is installed more than once.*of elsewhere"):
        load(["greedy"])


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        (f"{MODULE}:Misspelt", "cannot be imported: AttributeError"),
        ("nowhere:Greedy", "cannot be imported: ModuleNotFoundError"),
        (f"{MODULE}:WithoutPolicy", "has no `policy`"),
        (f"{MODULE}:WithoutWidth", "a policy without `width`"),
        (f"{MODULE}:WithoutRun", "has no `run`"),
    ],
)
def test_load_rejects_an_entry_point_that_is_not_a_decoder(
    install: Install, target: str, reason: str
) -> None:
    install("greedy", target=target)
    with pytest.raises(ConfigError, match=f"decoders: 'greedy', {target} of others, .*{reason}"):
        load(["greedy"])


def test_load_rejects_a_policy_with_another_method_name(install: Install) -> None:
    install("keen")
    with pytest.raises(ConfigError, match=r"of others, has a policy whose `method` is not .*keen"):
        load(["keen"])
