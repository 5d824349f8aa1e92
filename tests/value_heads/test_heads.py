from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from value_heads import HeadConfig, ValueHead, check_base, hash_base
from value_heads.heads import position_features


def config(
    mlp_width: int | None = 16, base_hash: str | None = None, position_limit: int | None = None
) -> HeadConfig:
    return HeadConfig(
        architecture="linear" if mlp_width is None else "mlp",
        rewards=("helpful", "brief"),
        hidden_size=8,
        mlp_width=mlp_width,
        position_limit=position_limit,
        shift=(0.5, -1.0),
        scale=(2.0, 0.1),
        base_model="tiny",
        base_hash=base_hash,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    ValueHead(config()).save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("mlp_width", [None, 16])
def test_reloaded_head_gives_the_same_values(tmp_path: Path, mlp_width: int | None) -> None:
    head = ValueHead(config(mlp_width), report="It was measured.")
    head.save_pretrained(tmp_path)
    hidden = torch.randn(5, 8)
    loaded = ValueHead.from_pretrained(tmp_path)
    assert torch.equal(loaded(hidden), head(hidden))
    assert loaded.config == head.config
    assert not loaded.training
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    card = (tmp_path / "README.md").read_text()
    assert "base_model: tiny" in card
    assert "library_name: cdserve" in card
    assert "It was measured." in card


def test_values_are_float32_in_reward_units() -> None:
    head = ValueHead(config(None))
    hidden = torch.randn(3, 8, dtype=torch.bfloat16)
    values = head(hidden)
    net = hidden.float() @ head.net.weight.T + head.net.bias
    expected = torch.tensor([0.5, -1.0]) + torch.tensor([2.0, 0.1]) * net
    assert values.dtype == torch.float32
    torch.testing.assert_close(values, expected)


@pytest.mark.parametrize("mlp_width", [None, 16])
def test_reloaded_head_with_positions_gives_the_same_values(
    tmp_path: Path, mlp_width: int | None
) -> None:
    head = ValueHead(config(mlp_width, position_limit=50))
    head.save_pretrained(tmp_path)
    hidden, position = torch.randn(4, 8).repeat(2, 1), torch.arange(8)
    loaded = ValueHead.from_pretrained(tmp_path)
    assert torch.equal(loaded(hidden, position), head(hidden, position))
    assert (head(hidden, position)[:4] != head(hidden, position)[4:]).all()
    card = (tmp_path / "README.md").read_text()
    assert "reads the number of response tokens in the prefix, up to 50" in card


def test_position_features_run_from_0_to_1_at_the_limit() -> None:
    features = position_features(torch.tensor([[-3, 0, 3, 15, 99]]), 15)
    logarithm, line = [0.0, 0.0, 0.5, 1.0, 1.0], [0.0, 0.0, 0.2, 1.0, 1.0]
    torch.testing.assert_close(features, torch.tensor([list(zip(logarithm, line, strict=True))]))


def test_head_without_positions_reads_none() -> None:
    head, hidden = ValueHead(config()), torch.randn(2, 8)
    assert torch.equal(head(hidden, torch.tensor([1, 100])), head(hidden))


def test_head_with_positions_refuses_states_alone() -> None:
    head = ValueHead(config(position_limit=50))
    with pytest.raises(ValueError, match="position is missing; a head with position_limit 50"):
        head(torch.randn(2, 8))


def test_head_accepts_any_leading_shape() -> None:
    head = ValueHead(config())
    assert head(torch.zeros(2, 3, 8)).shape == (2, 3, 2)


def change_weights(folder: Path, remove: str | None = None, **add: torch.Tensor) -> None:
    weights = load_file(folder / "model.safetensors") | add
    if remove:
        del weights[remove]
    save_file(weights, folder / "model.safetensors")


def test_loading_rejects_a_missing_weight(folder: Path) -> None:
    change_weights(folder, remove="net.0.bias")
    with pytest.raises(ValueError, match=r"must hold .*net\.0\.bias"):
        ValueHead.from_pretrained(folder)


def test_loading_rejects_an_unexpected_weight(folder: Path) -> None:
    change_weights(folder, extra=torch.zeros(1))
    with pytest.raises(ValueError, match=r"got .*extra"):
        ValueHead.from_pretrained(folder)


def test_loading_rejects_a_weight_of_another_shape(folder: Path) -> None:
    (folder / "config.json").write_text(config(32).to_json())
    with pytest.raises(ValueError, match=r"must hold .*\(32, 8\)"):
        ValueHead.from_pretrained(folder)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_loading_refuses_a_weight_that_is_not_finite(folder: Path, value: float) -> None:
    bias = load_file(folder / "model.safetensors")["net.0.bias"]
    bias[3] = value
    change_weights(folder, **{"net.0.bias": bias})
    with pytest.raises(ValueError, match=r"net\.0\.bias has values that are not finite"):
        ValueHead.from_pretrained(folder)


def test_loading_never_reads_pickled_weights(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match="safetensors"):
        ValueHead.from_pretrained(folder)
    torch.save(weights, folder / "model.safetensors")
    with pytest.raises(ValueError, match="not a safetensors file"):
        ValueHead.from_pretrained(folder)


def test_loading_rejects_a_folder_without_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        ValueHead.from_pretrained(folder)


def test_check_base_rejects_another_base_unless_forced(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    own = config(base_hash=hash_base(tmp_path))
    check_base(own, tmp_path)
    check_base(config(base_hash=None), tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(ValueError, match="base_hash"):
        check_base(own, tmp_path)
    check_base(own, tmp_path, force=True)
