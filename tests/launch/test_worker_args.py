"""What vLLM is told for heads and members, and what cannot go with them."""

import json
import re
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import pytest

from cdserve.config import (
    BUILT_IN_REWARDS,
    ConfidenceReward,
    LogLikReward,
    RewardModelReward,
    Settings,
    ValueHeadReward,
)
from cdserve.demo.tiny import HEAD_DIR, MODEL_DIR, Q_HEAD_DIR, TUNED_DIR
from cdserve.errors import ConfigError
from cdserve.launch import vllm_args, worker_args
from cdserve.launch.heads import Heads, attach

REWARD = ValueHeadReward(kind="value_head", path=str(HEAD_DIR), q_head=str(Q_HEAD_DIR))
HEADS = Settings(model=str(MODEL_DIR), rewards={"sentiment": REWARD})
MEMBERS = Settings(model=str(MODEL_DIR), members={"tuned": str(TUNED_DIR)})
MODEL = HEADS.model_copy(
    update={"rewards": {"rm": RewardModelReward(kind="reward_model", model=str(MODEL_DIR))}}
)
LIKELY = Settings(model=str(MODEL_DIR), rewards={"fluent": LogLikReward(kind="loglik")})
TOP_HEAVY = Settings(
    model=str(MODEL_DIR),
    rewards={"top": ConfidenceReward(kind="confidence", of="top_k_logprob", top_k=9999)},
)
PLAIN = Settings(model=str(MODEL_DIR), rewards={})
CERTAIN = Settings(model=str(MODEL_DIR), rewards={"it": ConfidenceReward(kind="confidence")})
HEADS_OR_CONFIDENCE = pytest.mark.parametrize(
    "settings", [HEADS, CERTAIN], ids=["heads", "confidence"]
)
TRACKER = "cdserve.worker.runner_v1:RowTracker"


def parse(settings: Settings, heads: Heads, flags: Sequence[str]) -> Namespace:
    """vLLM's arguments."""
    return vllm_args.parse(settings, heads, flags)[0]


@pytest.mark.parametrize(
    ("settings", "flags", "refusal"),
    [
        (
            HEADS,
            ["--speculative-config", '{"method": "ngram", "num_speculative_tokens": 3}'],
            "--speculative-config is {.*}; heads and members cannot work with it",
        ),
        (HEADS, ["--enable-batch-sharded-sampling"], "--enable-batch-sharded-sampling is True"),
        (MEMBERS, ["--enable-dbo"], "--enable-dbo is True"),
        (TOP_HEAVY, [], "rewards.top.top_k is 9999; the model's vocabulary has 1536 tokens"),
        (MEMBERS, ["--pipeline-parallel-size", "2"], "--pipeline-parallel-size is 2; members"),
        (HEADS, ["--worker-cls", "mine.Worker"], "--worker-cls is mine.Worker"),
        (MEMBERS, ["--enable-lora"], "--enable-lora cannot be used with members"),
        (
            MEMBERS,
            ["--compilation-config", '{"cudagraph_mode": "FULL_AND_PIECEWISE"}'],
            "cudagraph_mode FULL_AND_PIECEWISE; with members or rewards of log p it can "
            "be PIECEWISE or NONE",
        ),
        (MODEL, ["--api-server-count", "2"], "--api-server-count is 2; .* reward model 'rm'"),
        (PLAIN, ["--api-server-count", "0"], "--api-server-count is 0"),
    ],
)
def test_incompatible_vllm_arguments_are_refused(
    settings: Settings, flags: list[str], refusal: str
) -> None:
    with pytest.raises(ConfigError, match=refusal):
        parse(settings, attach(settings), flags)


def test_vllm_arguments_are_unchanged_without_heads_and_members() -> None:
    args = parse(PLAIN, attach(PLAIN), ["--enable-dbo"])
    assert args.enable_dbo
    assert not args.logits_processors
    assert args.scheduler_cls is None


@pytest.mark.parametrize(
    ("told", "triton", "processors"),
    [("0", True, [TRACKER]), ("1", False, None), (None, True, None), (None, False, [TRACKER])],
)
def test_each_model_runner_gets_its_adapter(
    monkeypatch: pytest.MonkeyPatch, told: str | None, triton: bool, processors: list[str] | None
) -> None:
    monkeypatch.delenv("VLLM_USE_V2_MODEL_RUNNER", raising=False)
    if told is not None:
        monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", told)
    monkeypatch.setattr(worker_args, "HAS_TRITON", triton)
    assert parse(HEADS, attach(HEADS), []).logits_processors == processors


@pytest.mark.parametrize("mode", [None, "PIECEWISE", "NONE"])
@pytest.mark.parametrize("settings", [MEMBERS, LIKELY], ids=["members", "log-likelihoods"])
def test_graphs_are_piecewise_if_the_wrapper_forward_must_run(
    settings: Settings, mode: str | None
) -> None:
    args = parse(settings, attach(settings), _graphs(mode) if mode else [])
    assert args.compilation_config.cudagraph_mode.name == (mode or "PIECEWISE")


@pytest.mark.parametrize("mode", ["FULL", "FULL_AND_PIECEWISE", "FULL_DECODE_ONLY"])
@pytest.mark.parametrize("settings", [MEMBERS, LIKELY], ids=["members", "log-likelihoods"])
def test_full_graphs_are_refused_if_the_wrapper_forward_must_run(
    settings: Settings, mode: str
) -> None:
    with pytest.raises(ConfigError, match=f"cudagraph_mode {mode}; .* PIECEWISE or NONE"):
        parse(settings, attach(settings), _graphs(mode))


@HEADS_OR_CONFIDENCE
def test_full_graphs_of_prompts_are_refused_if_texts_are_read(settings: Settings) -> None:
    with pytest.raises(ConfigError, match=r"cudagraph_mode FULL; with value heads or .* FULL_AND"):
        parse(settings, attach(settings), _graphs("FULL"))


@HEADS_OR_CONFIDENCE
@pytest.mark.parametrize("mode", ["FULL_AND_PIECEWISE", "FULL_DECODE_ONLY", "PIECEWISE", "NONE"])
def test_other_graphs_are_left_as_they_are_if_texts_are_read(settings: Settings, mode: str) -> None:
    args = parse(settings, attach(settings), _graphs(mode))
    assert args.compilation_config.cudagraph_mode.name == mode


@HEADS_OR_CONFIDENCE
def test_vllm_chooses_the_graphs_where_nothing_is_set(settings: Settings) -> None:
    assert parse(settings, attach(settings), []).compilation_config.cudagraph_mode is None


def _graphs(mode: str) -> list[str]:
    return ["--compilation-config", f'{{"cudagraph_mode": "{mode}"}}']


def test_flags_in_the_settings_are_refused_like_those_of_the_command_line() -> None:
    settings = MEMBERS.model_copy(update={"engine": {"pipeline_parallel_size": 2}})
    with pytest.raises(ConfigError, match=re.escape("--pipeline-parallel-size is 2")):
        parse(settings, attach(settings), [])


BUILT_IN = Settings(model=str(MODEL_DIR))


def test_worker_computes_the_built_in_rewards_of_a_model_without_settings() -> None:
    args, settings = vllm_args.parse(BUILT_IN, attach(BUILT_IN), [])
    assert settings.rewards == BUILT_IN_REWARDS
    assert args.worker_cls == "cdserve.worker.worker.Worker"
    assert args.compilation_config.cudagraph_mode is None


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--enable-lora"], "--enable-lora cannot be used with"),
        (["--pipeline-parallel-size", "2"], "--pipeline-parallel-size is 2"),
        (["--enable-dbo"], "--enable-dbo is True"),
        (["--worker-cls", "mine.Worker"], "--worker-cls is mine.Worker"),
        (["--runner", "pooling"], "--runner is pooling"),
        (["--model-impl", "transformers"], "changed by --hf-overrides or --model-impl"),
        (["--hf-overrides", '{"vocab_size": 1600}'], "changed by --hf-overrides or --model-impl"),
        (_graphs("FULL"), "cudagraph_mode FULL"),
    ],
)
def test_model_is_served_without_the_built_in_rewards_where_they_do_not_fit(
    flags: list[str], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("WARNING", "vllm.cdserve"):
        args, settings = vllm_args.parse(BUILT_IN, attach(BUILT_IN), flags)
    assert settings.rewards == {}
    assert not (args.additional_config or {}).get("cdserve")
    (record,) = (one for one in caplog.records if one.name == "vllm.cdserve")
    message = record.getMessage()
    assert message.startswith("the built-in rewards self_certainty and deepconf are off: ")
    assert reason in message


def test_unknown_architecture_is_served_without_the_built_in_rewards(tmp_path: Path) -> None:
    config = json.loads((MODEL_DIR / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"architectures": ["Odd"]}))
    (tmp_path / "tokenizer.json").symlink_to(MODEL_DIR / "tokenizer.json")
    odd = Settings(model=str(tmp_path))
    args, settings = vllm_args.parse(odd, attach(odd), [])
    assert settings.rewards == {}
    assert args.worker_cls == "auto"


def test_built_in_rewards_leave_those_of_members_to_their_checks() -> None:
    with pytest.raises(ConfigError, match="--enable-lora cannot be used with members"):
        parse(MEMBERS, attach(MEMBERS), ["--enable-lora"])
