"""What vLLM is told for heads and members, and what cannot go with them."""

import re

import pytest

from cdserve.config import (
    ConfidenceReward,
    LogLikReward,
    RewardModelReward,
    Settings,
    ValueHeadReward,
)
from cdserve.demo.tiny import HEAD_DIR, MODEL_DIR, Q_HEAD_DIR, TUNED_DIR
from cdserve.errors import ConfigError
from cdserve.launch import worker_args
from cdserve.launch.heads import attach
from cdserve.launch.vllm_args import parse

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
PLAIN = Settings(model=str(MODEL_DIR))
TRACKER = "cdserve.worker.runner_v1:RowTracker"


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
            "cudagraph_mode FULL_AND_PIECEWISE; with members or rewards of log p or confidence it "
            "can be PIECEWISE or NONE",
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


def test_full_graphs_of_prompts_are_refused_with_value_heads() -> None:
    with pytest.raises(ConfigError, match="cudagraph_mode FULL; with value heads it can be FULL_A"):
        parse(HEADS, attach(HEADS), _graphs("FULL"))


@pytest.mark.parametrize("mode", ["FULL_AND_PIECEWISE", "FULL_DECODE_ONLY", "PIECEWISE", "NONE"])
def test_other_graphs_are_left_as_they_are_with_value_heads(mode: str) -> None:
    args = parse(HEADS, attach(HEADS), _graphs(mode))
    assert args.compilation_config.cudagraph_mode.name == mode


def test_vllm_chooses_the_graphs_where_nothing_is_set_with_value_heads() -> None:
    assert parse(HEADS, attach(HEADS), []).compilation_config.cudagraph_mode is None


def _graphs(mode: str) -> list[str]:
    return ["--compilation-config", f'{{"cudagraph_mode": "{mode}"}}']


def test_flags_in_the_settings_are_refused_like_those_of_the_command_line() -> None:
    settings = MEMBERS.model_copy(update={"engine": {"pipeline_parallel_size": 2}})
    with pytest.raises(ConfigError, match=re.escape("--pipeline-parallel-size is 2")):
        parse(settings, attach(settings), [])
