"""`cdserve heads confidence` from the command line, on a small cache made by hand."""

import json
from pathlib import Path

import pytest
import torch

from cdserve.cli import main
from value_heads import CachedRollouts, ShardWriter, ValueHead, confidence_head

HASH = "0123456789abcdef" * 4


def fill(folder: Path, name: str, ended: list[bool]) -> None:
    """Responses of two tokens, as text and as states."""
    generator = torch.Generator().manual_seed(len(ended))
    writer = ShardWriter(folder, name, shard_tokens=8)
    for prompt, one in enumerate(ended):
        states = torch.randn(3, 4, generator=generator)
        writer.add(states, torch.tensor([1, 2]), ended=one, prompt=prompt)
    writer.flush()
    (folder / f"{name}-rollouts-00000.jsonl").write_text("{}\n" * len(ended))


def settings(folder: Path, **changes: object) -> None:
    content = {"model": "tiny", "base_hash": HASH, "max_tokens": 2} | changes
    text = json.dumps({key: value for key, value in content.items() if value is not None})
    (folder / "settings.json").write_text(text)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    folder = tmp_path / "cache"
    folder.mkdir()
    settings(folder)
    fill(folder, "train", [True, True, False] * 5)
    fill(folder, "validation", [True, False])
    return folder


def confidence(cache: Path, *arguments: str) -> Path:
    out = cache.with_name("head")
    main(["heads", "confidence", "--cache", str(cache), "--out", str(out), *arguments])
    return out


class TestOutcome:
    def test_confidence_writes_a_head_and_prints_the_validation_mean(
        self, cache: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out = confidence(cache)
        head = ValueHead.from_pretrained(out)
        config = head.config
        assert (config.rewards, config.base_model, config.base_hash) == (
            ("confidence",),
            "tiny",
            HASH,
        )
        state = CachedRollouts(cache, "validation")[0].states[2]
        assert capsys.readouterr().out == (
            f"{out}: confidence from 10 finished responses; validation: mean "
            f"{head(state).item():.4g} (n = 1)\n"
        )
        card = (out / "README.md").read_text()
        assert "base_model: tiny" in card
        assert "Made of 10 responses that ended, λ = 1." in card

    def test_flags_set_ridge_output_name_and_base_name(self, cache: Path) -> None:
        out = confidence(cache, "--ridge", "5", "--name", "sure", "--base-name", "My model")
        head = ValueHead.from_pretrained(out)
        assert (head.config.rewards, head.config.base_model) == (("sure",), "My model")
        expected = confidence_head(CachedRollouts(cache, "train"), base_model="", ridge=5.0)
        assert torch.equal(head(torch.ones(4)), expected(torch.ones(4)))

    def test_summary_reports_no_finished_validation_response(
        self, cache: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for path in cache.glob("validation-*"):
            path.unlink()
        fill(cache, "validation", [False, False])
        confidence(cache)
        assert capsys.readouterr().out.endswith("; validation: no finished responses\n")

    def test_inspect_describes_a_confidence_head(
        self, cache: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        main(["heads", "inspect", str(confidence(cache))])
        assert "Value head, mahalanobis, kind mean, 20 parameters" in capsys.readouterr().out


class TestRefusals:
    """Errors name the flag, the value and the requirement; nothing is written."""

    @pytest.mark.parametrize(
        ("arguments", "refusal"),
        [
            (("--ridge", "0"), r"--ridge is 0\.0; it must be positive"),
            (("--ridge", "nan"), "--ridge is nan; it must be positive"),
            (("--ridge", "inf"), "ridge must be a positive number, got inf"),
            (("--name", ""), "rewards must be one or more different, non-empty names"),
        ],
    )
    def test_invalid_flag_value_is_refused(
        self, cache: Path, arguments: tuple[str, ...], refusal: str
    ) -> None:
        with pytest.raises(SystemExit, match=f"cdserve: .*{refusal}"):
            confidence(cache, *arguments)
        assert not cache.with_name("head").exists()

    def test_existing_head_is_not_overwritten(self, cache: Path) -> None:
        out = confidence(cache)
        with pytest.raises(SystemExit, match=rf"cdserve: --out {out} already has a head"):
            confidence(cache)

    @pytest.mark.parametrize("text", [None, "", "[]", "{}"])
    def test_folder_without_cache_settings_is_refused(
        self, tmp_path: Path, text: str | None
    ) -> None:
        if text is not None:
            (tmp_path / "settings.json").write_text(text)
        with pytest.raises(
            SystemExit, match=rf"--cache {tmp_path} is not a cache of `cdserve heads"
        ):
            confidence(tmp_path)

    def test_cache_without_model_name_requires_base_name(self, cache: Path) -> None:
        settings(cache, model=None)
        with pytest.raises(SystemExit, match=rf"--base-name is required: --cache {cache} does not"):
            confidence(cache)
        confidence(cache, "--base-name", "tiny")

    @pytest.mark.parametrize(
        ("missing", "states", "texts"),
        [
            ("train-states-*", "0", "15"),
            ("train-states-00002*", "11", "15"),
            ("validation-states-*", "0", "2"),
            ("train-*", "0", "0"),
        ],
    )
    def test_incomplete_cache_is_refused(
        self, cache: Path, missing: str, states: str, texts: str
    ) -> None:
        for path in cache.glob(missing):
            path.unlink()
        name = missing.partition("-")[0]
        counts = f"set {name} has states of {states} and texts of {texts} responses; "
        with pytest.raises(SystemExit, match=f"--cache {cache} is incomplete: {counts}"):
            confidence(cache)

    def test_too_few_finished_responses_are_refused(self, cache: Path) -> None:
        for path in cache.glob("train-*"):
            path.unlink()
        fill(cache, "train", [False, True])
        with pytest.raises(SystemExit, match=rf"{cache}: responses that ended must be at least 2"):
            confidence(cache)
