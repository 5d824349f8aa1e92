"""Files of the formats, and the README."""

from collections import Counter
from pathlib import Path

import pytest
import yaml

from cdserve.collection.derive import derive
from cdserve.collection.formats import FORMATS, Filters
from cdserve.collection.job import BUILT_IN, check_formats
from cdserve.collection.prompt_result import PromptResult
from cdserve.errors import ConfigError
from cdserve.prompts import Prompt

from .samples import CHAT, SETTINGS, TEXT, job, response, result


def results(*prompts: Prompt, cut: bool = False) -> list[PromptResult]:
    """Two responses per prompt."""
    end = "length" if cut else "stop"
    return [
        result(response("a", 1.0, chosen=True), response("b", 0.0, end), prompt=one, index=index)
        for index, one in enumerate(prompts)
    ]


def offered(folder: Path) -> list[str]:
    """Names of the data sets in the README's metadata."""
    configs = yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])["configs"]
    return [config["config_name"] for config in configs]


@pytest.mark.parametrize("prompt", [TEXT, CHAT])
def test_prompts_of_one_form_give_data_sets_without_suffix(tmp_path: Path, prompt: Prompt) -> None:
    data_sets = derive(job(tmp_path, [prompt] * 3, FORMATS), results(*[prompt] * 3), SETTINGS)
    assert {data.name: data.rows for data in data_sets} == {
        **{"preference": 3, "sft": 3},
        **{"unpaired": 6, "candidates": 3},
    }
    assert offered(tmp_path) == list(FORMATS)


def test_prompts_of_both_forms_give_text_and_chat_data_sets(tmp_path: Path) -> None:
    prompts = [TEXT, CHAT, TEXT]
    data_sets = derive(job(tmp_path, prompts, ["sft"]), results(*prompts), SETTINGS)
    assert {data.name: data.rows for data in data_sets} == {"sft-text": 2, "sft-chat": 1}


def test_data_set_names_do_not_depend_on_limit(tmp_path: Path) -> None:
    few = job(tmp_path, [TEXT], ["sft"], mixed=True)
    derive(few, results(TEXT), SETTINGS)
    assert offered(tmp_path) == ["sft-text"]


def test_derive_replaces_the_formats_of_the_previous_run(tmp_path: Path) -> None:
    derive(job(tmp_path, [TEXT, CHAT], FORMATS), results(TEXT, CHAT), SETTINGS)
    derive(job(tmp_path, [TEXT], ["sft"]), results(TEXT), SETTINGS)
    assert {path.name for path in tmp_path.iterdir()} == {
        *("README.md", "sft-00000-of-00001.jsonl")
    }


def test_omitted_rows_are_counted_and_empty_data_set_is_not_in_metadata(tmp_path: Path) -> None:
    ended = job(tmp_path, [TEXT] * 3, ["preference", "sft"], filters=Filters(ended_only=True))
    pairs, best = derive(ended, results(*[TEXT] * 3, cut=True), SETTINGS)
    assert (pairs.rows, pairs.left_out) == (0, Counter({"not ended": 3}))
    assert str(pairs) == "preference: 0 rows in 0 files; left out: 3 not ended"
    assert str(best) == "sft: 3 rows in 1 file; left out: none"
    assert offered(tmp_path) == ["sft"]
    assert "- preference: 0 rows in 0 files; left out: 3 not ended" in (
        (tmp_path / "README.md").read_text()
    )


def test_formats_that_compare_responses_require_methods_with_several() -> None:
    for method in ("best_of_n", "best_of_poisson", "rejection"):
        check_formats(method, BUILT_IN, FORMATS, Filters())
    for method in ("blockwise_cd", "cards", "speculative_rejection", "tokenwise_cd", "other"):
        check_formats(method, BUILT_IN, ["sft", "candidates"], Filters())
        check_formats(method, BUILT_IN, ["unpaired"], Filters(threshold=0.0))
        with pytest.raises(
            ConfigError, match=f"preference compares .* but {method} gives only one"
        ):
            check_formats(method, BUILT_IN, ["preference"], Filters(threshold=0.0))
        with pytest.raises(ConfigError, match="unpaired without --label-threshold compares"):
            check_formats(method, BUILT_IN, ["unpaired"], Filters())
