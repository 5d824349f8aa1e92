"""Which files there are, with their README."""

from collections import Counter
from pathlib import Path

import pytest
import yaml

from cdserve.collection.answered import Answered
from cdserve.collection.derive import derive
from cdserve.collection.formats import FORMATS, Filters
from cdserve.collection.job import check_formats
from cdserve.errors import ConfigError
from cdserve.prompts import Prompt

from .made import CHAT, SETTINGS, TEXT, answered, job, response


def answers(*prompts: Prompt, cut: bool = False) -> list[Answered]:
    """Two responses to each prompt."""
    end = "length" if cut else "stop"
    return [
        answered(response("a", 1.0, chosen=True), response("b", 0.0, end), prompt=one, index=index)
        for index, one in enumerate(prompts)
    ]


def offered(folder: Path) -> list[str]:
    """The data sets that the README offers to ``datasets``."""
    configs = yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])["configs"]
    return [config["config_name"] for config in configs]


@pytest.mark.parametrize("prompt", [TEXT, CHAT])
def test_prompts_of_one_form(tmp_path: Path, prompt: Prompt) -> None:
    made = derive(job(tmp_path, [prompt] * 3, FORMATS), answers(*[prompt] * 3), SETTINGS)
    assert {one.name: one.rows for one in made} == {
        **{"preference": 3, "sft": 3},
        **{"unpaired": 6, "candidates": 3},
    }
    assert offered(tmp_path) == list(FORMATS)


def test_prompts_of_both_forms(tmp_path: Path) -> None:
    prompts = [TEXT, CHAT, TEXT]
    made = derive(job(tmp_path, prompts, ["sft"]), answers(*prompts), SETTINGS)
    assert {one.name: one.rows for one in made} == {"sft-text": 2, "sft-chat": 1}


def test_names_do_not_depend_on_how_many_prompts_are_asked(tmp_path: Path) -> None:
    few = job(tmp_path, [TEXT], ["sft"], mixed=True)
    derive(few, answers(TEXT), SETTINGS)
    assert offered(tmp_path) == ["sft-text"]


def test_a_folder_has_the_formats_of_the_last_run(tmp_path: Path) -> None:
    derive(job(tmp_path, [TEXT, CHAT], FORMATS), answers(TEXT, CHAT), SETTINGS)
    derive(job(tmp_path, [TEXT], ["sft"]), answers(TEXT), SETTINGS)
    assert {path.name for path in tmp_path.iterdir()} == {
        *("README.md", "sft-00000-of-00001.jsonl")
    }


def test_what_is_left_out_is_counted_and_an_empty_data_set_is_not_offered(tmp_path: Path) -> None:
    asked = job(tmp_path, [TEXT] * 3, ["preference", "sft"], filters=Filters(ended_only=True))
    pairs, best = derive(asked, answers(*[TEXT] * 3, cut=True), SETTINGS)
    assert (pairs.rows, pairs.left_out) == (0, Counter({"not ended": 3}))
    assert str(pairs) == "preference: 0 rows in 0 files; left out: 3 not ended"
    assert str(best) == "sft: 3 rows in 1 file; left out: none"
    assert offered(tmp_path) == ["sft"]
    assert "- preference: 0 rows in 0 files; left out: 3 not ended" in (
        (tmp_path / "README.md").read_text()
    )


def test_methods_with_one_whole_response() -> None:
    for method in ("best_of_n", "best_of_poisson", "rejection"):
        check_formats(method, FORMATS, Filters())
    for method in ("blockwise_cd", "cards", "speculative_rejection", "tokenwise_cd", "other"):
        check_formats(method, ["sft", "candidates"], Filters())
        check_formats(method, ["unpaired"], Filters(threshold=0.0))
        with pytest.raises(ConfigError, match=f"preference compares .* and {method} has one"):
            check_formats(method, ["preference"], Filters(threshold=0.0))
        with pytest.raises(ConfigError, match="unpaired without --label-threshold compares"):
            check_formats(method, ["unpaired"], Filters())
