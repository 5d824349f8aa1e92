import json
from dataclasses import replace

import pytest

from value_heads import HeadConfig

MLP = HeadConfig(
    architecture="mlp",
    rewards=("helpful", "brief"),
    hidden_size=8,
    mlp_width=16,
    shift=(0.5, -1.0),
    scale=(2.0, 0.1),
    base_model="tiny",
    base_hash="0" * 64,
)


def test_json_keeps_every_field() -> None:
    assert HeadConfig.from_json(MLP.to_json()) == MLP


def test_config_from_before_positions_has_none() -> None:
    data = json.loads(MLP.to_json())
    del data["position_limit"]
    assert HeadConfig.from_json(json.dumps(data)) == MLP


def test_mahalanobis_head_refuses_positions() -> None:
    with pytest.raises(ValueError, match="position_limit must be null, as the head is mahalanobis"):
        replace(MLP, architecture="mahalanobis", mlp_width=None, position_limit=9)


def test_linear_config_without_width_survives_json() -> None:
    linear = replace(MLP, architecture="linear", mlp_width=None)
    assert HeadConfig.from_json(linear.to_json()) == linear


@pytest.mark.parametrize(
    ("field", "value", "accepted"),
    [
        ("architecture", "transformer", "one of linear, mlp, lowrank, tied"),
        ("kind", "max", '"mean" or "soft"'),
        ("beta", 0.5, "null, as the head is not soft"),
        ("output", "tanh", '"identity" or "sigmoid"'),
        ("rewards", [], "non-empty names"),
        ("rewards", ["a", "a"], "different"),
        ("rewards", "helpful", "names"),
        ("hidden_size", 0, "a positive integer"),
        ("hidden_size", True, "a positive integer"),
        ("mlp_width", None, "a positive integer"),
        ("position_limit", 0, "a positive integer"),
        ("shift", [0.0], "2 finite numbers"),
        ("shift", [0.0, float("nan")], "2 finite numbers"),
        ("scale", [1.0, 0.0], "2 positive numbers"),
        ("base_model", None, "a string"),
        ("base_hash", "abc", "64 hexadecimal digits or null"),
        ("layer", 1.0, "an integer"),
        ("post_norm", 1, "true or false"),
        ("dtype", "float16", '"float32"'),
        ("version", 2, "1"),
    ],
)
def test_invalid_value_is_named_with_its_field(field: str, value: object, accepted: str) -> None:
    text = json.dumps(json.loads(MLP.to_json()) | {field: value})
    with pytest.raises(ValueError, match=f"^{field} must be .*{accepted}.*, got "):
        HeadConfig.from_json(text)


def test_unknown_key_is_named() -> None:
    text = json.dumps(json.loads(MLP.to_json()) | {"activation": "gelu"})
    with pytest.raises(ValueError, match=r"unknown key 'activation'; accepted: .*architecture"):
        HeadConfig.from_json(text)


def test_config_without_a_key_is_rejected_with_the_keys_name() -> None:
    data = json.loads(MLP.to_json())
    del data["post_norm"]
    with pytest.raises(ValueError, match="missing key 'post_norm'"):
        HeadConfig.from_json(json.dumps(data))


@pytest.mark.parametrize("beta", [None, 0.0, -1.0, float("inf"), True])
def test_soft_head_requires_beta(beta: object) -> None:
    with pytest.raises(ValueError, match=r"beta must be a positive number, as the head is soft"):
        replace(MLP, kind="soft", beta=beta)
    soft = replace(MLP, kind="soft", beta=0.5)
    assert HeadConfig.from_json(soft.to_json()) == soft


def test_q_head_rejects_a_sigmoid() -> None:
    with pytest.raises(ValueError, match='output must be "identity", as it is a Q-head'):
        replace(MLP, architecture="tied", mlp_width=None, vocab_size=4, output="sigmoid")


def test_older_file_defaults_to_mean_and_identity() -> None:
    data = json.loads(MLP.to_json())
    del data["beta"], data["output"]
    assert HeadConfig.from_json(json.dumps(data)) == MLP


def test_linear_head_rejects_a_width() -> None:
    with pytest.raises(ValueError, match="mlp_width must be null"):
        replace(MLP, architecture="linear")


def test_config_must_be_a_json_object() -> None:
    with pytest.raises(ValueError, match="must be an object"):
        HeadConfig.from_json("[]")


def test_long_value_is_shortened_in_the_message() -> None:
    with pytest.raises(ValueError, match="architecture") as caught:
        replace(MLP, architecture="x" * 10_000)  # type: ignore[arg-type]
    assert len(str(caught.value)) < 200
