"""Policies from command-line arguments and files."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from cdserve.client.policies import NamedPolicy, read_policies
from cdserve.errors import ConfigError


def of_file(folder: Path, content: Any) -> Path:
    path = folder / "policies.yaml"
    path.write_text(
        content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False)
    )
    return path


class TestArguments:
    def test_argument_without_fields_is_a_preset(self) -> None:
        assert read_policies(None, ["best-of-8"]) == [NamedPolicy("best-of-8", "best-of-8")]

    def test_argument_none_is_plain_decoding(self) -> None:
        assert read_policies(None, ["none"]) == [NamedPolicy("none", {"method": "none"})]

    def test_argument_fields_make_a_policy(self) -> None:
        (policy,) = read_policies(None, ["blockwise_cd k=4 m=32"])
        assert policy == NamedPolicy(
            "blockwise_cd k=4 m=32", {"method": "blockwise_cd", "k": 4, "m": 32}
        )

    def test_several_values_of_a_field_are_a_sweep(self) -> None:
        policies = read_policies(None, ["best_of_n n=1,2,4"])
        assert [(policy.name, policy.sweep, policy.setting) for policy in policies] == [
            ("best_of_n n=1", "best_of_n", "n=1"),
            ("best_of_n n=2", "best_of_n", "n=2"),
            ("best_of_n n=4", "best_of_n", "n=4"),
        ]
        assert [policy.alignment for policy in policies] == [
            {"method": "best_of_n", "n": n} for n in (1, 2, 4)
        ]

    def test_sweep_of_two_fields_has_all_combinations(self) -> None:
        policies = read_policies(None, ["blockwise_cd k=2,4 m=16,32 beam_width=1"])
        assert [policy.setting for policy in policies] == [
            *("k=2, m=16", "k=2, m=32", "k=4, m=16", "k=4, m=32"),
        ]
        assert {policy.sweep for policy in policies} == {"blockwise_cd beam_width=1"}

    def test_list_is_one_value(self) -> None:
        (policy,) = read_policies(None, ["blockwise_cd k=[8,4,2] m=32"])
        assert policy.alignment == {"method": "blockwise_cd", "k": [8, 4, 2], "m": 32}
        assert policy.sweep is None
        lists = read_policies(None, ["blockwise_cd k=[8,4],[4,2] m=32"])
        assert [policy.setting for policy in lists] == ["k=[8, 4]", "k=[4, 2]"]

    def test_number_with_exponent_is_a_float(self) -> None:
        policies = read_policies(None, ["tokenwise_cd beta=1e-3,0.5,2"])
        assert [policy.alignment["beta"] for policy in policies] == [0.001, 0.5, 2]
        assert [policy.setting for policy in policies] == ["beta=0.001", "beta=0.5", "beta=2"]

    def test_json_argument_is_a_policy_or_a_sweep(self) -> None:
        (policy,) = read_policies(None, ['{"method": "best_of_n", "n": 4, "rewards": {"a": 1.0}}'])
        assert policy.name == 'best_of_n n=4 rewards={"a": 1.0}'
        assert policy.alignment == {"method": "best_of_n", "n": 4, "rewards": {"a": 1.0}}
        swept = read_policies(None, ['{"method": "best_of_n", "sweep": {"n": [2, 4]}}'])
        assert [policy.name for policy in swept] == ["best_of_n n=2", "best_of_n n=4"]

    @pytest.mark.parametrize(
        ("argument", "words"),
        [
            ("", "empty"),
            ("   ", "empty"),
            ("best_of_n n", "field=value"),
            ("best_of_n =4", "field=value"),
            ("best_of_n n=", "field=value"),
            ("best_of_n n=[1", "not a value"),
            ("best_of_n n=1 n=2", "has n twice"),
            ("best_of_n n=1,2 n=4", "has n twice"),
            ('{"method": "best_of_n"', "not valid JSON"),
            ('{"n": 4}', "an object with a method"),
            ('{"method": 4}', "an object with a method"),
            ('{"method": "best_of_n", "sweep": {"n": 4}}', "must map fields to lists"),
            ('{"method": "best_of_n", "sweep": {"n": []}}', "must map fields to lists"),
        ],
    )
    def test_invalid_argument_is_refused(self, argument: str, words: str) -> None:
        with pytest.raises(ConfigError, match=words):
            read_policies(None, [argument])


class TestFile:
    def test_file_may_have_objects_presets_and_sweeps(self, tmp_path: Path) -> None:
        path = of_file(
            tmp_path,
            {
                "mine": {"method": "best_of_n", "n": 4, "sampling": {"temperature": 0.8}},
                "theirs": "best-of-8",
                "steered": {"method": "tokenwise_cd", "sweep": {"beta": [0.5, 1]}},
            },
        )
        policies = {policy.name: policy for policy in read_policies(path, ["none"])}
        assert list(policies) == ["mine", "theirs", "steered beta=0.5", "steered beta=1", "none"]
        mine = {"method": "best_of_n", "n": 4, "sampling": {"temperature": 0.8}}
        assert policies["mine"].alignment == mine
        assert policies["theirs"].alignment == "best-of-8"
        assert policies["steered beta=1"].alignment == {"method": "tokenwise_cd", "beta": 1}
        assert policies["steered beta=1"].sweep == "steered"

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            ("[1, 2]", "must map names to policies"),
            ("", "must map names to policies"),
            ("a: [", "cannot be read"),
            ("a: best-of-8\na: best-of-4\n", "duplicate key 'a'"),
            ("a: 3", "an object with a method"),
            ("a: {n: 3}", "an object with a method"),
        ],
    )
    def test_invalid_file_is_refused(self, content: str, words: str, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=words):
            read_policies(of_file(tmp_path, content), [])

    def test_missing_file_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="cannot be read"):
            read_policies(tmp_path / "none.yaml", [])

    def test_duplicate_policy_name_is_refused(self, tmp_path: Path) -> None:
        path = of_file(tmp_path, {"best_of_n n=4": {"method": "best_of_n", "n": 8}})
        with pytest.raises(ConfigError, match="two policies are named 'best_of_n n=4'"):
            read_policies(path, ["best_of_n n=2,4"])
