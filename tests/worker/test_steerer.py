"""Steering a batch's logits, on the enumerable model "ab3" of METHODS' worked values."""

import math
from collections.abc import Callable
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cdserve.demo.tiny import Q_HEAD_DIR
from cdserve.shared_table import SharedTable, Ticket
from cdserve.worker.readback import ReadBack
from cdserve.worker.request import RowTilt, WorkerRequest
from cdserve.worker.steerer import Steerer
from tests.decoders.toy import LENGTH, A, B, E, P, Tokens, probability, reward, soft_value, value
from tests.value_heads.kernels.cases import DEVICE, RUN
from value_heads import HeadConfig, QHead, kl
from value_heads.kernels import runs_on

from .asking import Asking

fused_or_not = pytest.mark.parametrize("fused", [False, True] if RUN else [False])
"""By the reference, and where they run by the kernels."""

PREFIXES: list[Tokens] = [s for n in range(LENGTH) for s in product((A, B), repeat=n)]
"""All that a token is drawn after; the model's hidden states are unit vectors, one a prefix."""
HIDDEN = torch.eye(len(PREFIXES), device=DEVICE)
LM_HEAD = torch.randn(len(P), len(PREFIXES), generator=torch.Generator().manual_seed(0)).to(DEVICE)


def q_head(folder: Path, of: Callable[[Tokens], float], architecture: Any) -> Path:
    """Writes a head with Q(s, z) = of(s z) exactly."""
    table = torch.tensor([[of((*s, z)) for z in range(len(P))] for s in PREFIXES])
    config = HeadConfig(
        architecture=architecture,
        rewards=("r",),
        hidden_size=len(PREFIXES),
        rank=len(P) if architecture == "lowrank" else None,
        vocab_size=len(P),
        shift=(0.0,),
        scale=(2.0,),
        base_model="ab3",
    )
    head = QHead(config)
    with torch.no_grad():
        head.state.weight.zero_()
        if architecture == "lowrank":
            head.tokens.copy_(torch.eye(len(P)))
            head.factor.weight.copy_(table.T / 2)
        else:
            head.factor.weight.copy_((table @ torch.linalg.pinv(LM_HEAD.cpu()).T).T / 2)
    head.save_pretrained(folder)
    return folder


def none(rows: Tensor) -> dict[str, Tensor]:
    """No members."""
    return {}


def tilted(
    folder: Path, coefficient: float, top_k: int | None = None, fused: bool = False
) -> Tensor:
    """Logits of every prefix, all in one batch, tilted by the worker's own code."""
    row = WorkerRequest(tilt=RowTilt({0: coefficient}, top_k))
    steerer = Steerer([str(folder)], DEVICE, len(P), len(PREFIXES), reports=True, fused=fused)
    rows = Asking().steered(dict.fromkeys(range(len(PREFIXES)), row))
    return steerer.steer(base().to(DEVICE), HIDDEN, rows, lambda _: {}, LM_HEAD).cpu()


def base() -> Tensor:
    return torch.tensor([P]).log().repeat(len(PREFIXES), 1)


def law(logits: Tensor) -> dict[Tokens, float]:
    """The probability of every response."""
    policy = dict(zip(PREFIXES, logits.double().softmax(-1).tolist(), strict=True))
    found = {}
    for tokens in product((A, B, E), repeat=LENGTH):
        response = tokens[: tokens.index(E) + 1] if E in tokens else tokens
        found[response] = math.prod(policy[response[:i]][z] for i, z in enumerate(response))
    return found


@fused_or_not
@pytest.mark.parametrize("architecture", ["lowrank", "tied"])
@pytest.mark.parametrize(
    ("of", "root", "mean_reward", "nats"),
    [
        (value, (0.34915367, 0.56945885, 0.08138748), 1.52554057, 0.40142906),
        (soft_value, (0.35545217, 0.57973150, 0.06481633), 1.5639489, 0.43718906),
    ],
)
def test_tilted_distribution_matches_the_enumerated_one(
    tmp_path: Path,
    architecture: str,
    of: Callable[[Tokens], float],
    root: tuple[float, ...],
    mean_reward: float,
    nats: float,
    fused: bool,
) -> None:
    """METHODS 6.5 and 6.7; and 6.14: the KL of the steps sums to that of the responses."""
    logits = tilted(q_head(tmp_path, of, architecture), 1.0, fused=fused)
    assert logits.softmax(-1)[0].tolist() == pytest.approx(root, abs=1e-6)
    found = law(logits)
    assert sum(found.values()) == pytest.approx(1)
    assert sum(p * reward(y) for y, p in found.items()) == pytest.approx(mean_reward, abs=2e-6)
    of_responses = sum(p * math.log(p / probability(y)) for y, p in found.items())
    assert of_responses == pytest.approx(nats, abs=2e-6)

    steps = dict(zip(PREFIXES, kl(base(), logits, torch.ones(len(PREFIXES))).tolist(), strict=True))
    of_paths = sum(p * sum(steps[y[:i]] for i in range(len(y))) for y, p in found.items())
    assert of_paths == pytest.approx(nats, abs=2e-6)


def test_soft_q_gives_the_optimal_distribution_of_sequences(tmp_path: Path) -> None:
    """p(y) e^r / Z, METHODS 6.5."""
    z = math.exp(1.1267598402)
    for response, p in law(tilted(q_head(tmp_path, soft_value, "lowrank"), 1.0)).items():
        assert p == pytest.approx(probability(response) * math.exp(reward(response)) / z, abs=1e-6)


@fused_or_not
def test_tilt_by_a_head_with_positions_counts_from_the_response(
    fused: bool, tmp_path: Path
) -> None:
    config = HeadConfig(
        architecture="lowrank",
        rewards=("r",),
        hidden_size=len(PREFIXES),
        rank=2,
        vocab_size=len(P),
        position_limit=6,
        shift=(0.0,),
        scale=(2.0,),
        base_model="ab3",
    )
    head = QHead(config)
    torch.nn.init.normal_(head.factor.weight)
    head.save_pretrained(tmp_path)
    steerer = Steerer([str(tmp_path)], DEVICE, len(P), 2, reports=True, fused=fused)
    starts = (3, 5)  # a prompt of 3 tokens, and one whose engine prompt holds 5 tokens of blocks
    requests = {
        row: WorkerRequest(tilt=RowTilt({0: 1.5}, None), response_start=8 - start)
        for row, start in enumerate(starts)
    }
    rows = Asking(prompt_length=8).steered(requests, tokens=8)
    made = steerer.steer(base()[:2].to(DEVICE), HIDDEN[:2], rows, none, None).cpu()
    q = head(HIDDEN[:2].cpu(), None, torch.tensor(starts))[:, 0]
    expected = (base()[:2] + 1.5 * q).log_softmax(-1)
    torch.testing.assert_close(made.log_softmax(-1), expected)


def test_constant_added_to_q_changes_nothing(tmp_path: Path) -> None:
    with_value = tilted(q_head(tmp_path / "v", value, "lowrank"), 1.0)
    shifted = q_head(tmp_path / "c", lambda s: value(s) + 7.0 * len(s), "lowrank")
    torch.testing.assert_close(tilted(shifted, 1.0).softmax(-1), with_value.softmax(-1))


@fused_or_not
def test_ratios_inside_the_top_k_match_the_tilt(tmp_path: Path, fused: bool) -> None:
    """VAS, METHODS 6.7: and what is outside counts as average."""
    folder = q_head(tmp_path, value, "lowrank")
    whole, limited = tilted(folder, 1.0, fused=fused), tilted(folder, 1.0, top_k=2, fused=fused)
    torch.testing.assert_close(limited[:, A] - limited[:, B], whole[:, A] - whole[:, B])
    assert torch.equal(limited[:, E], base()[:, E])
    torch.testing.assert_close(limited[:, :2].sum(-1), base()[:, :2].sum(-1))


def test_head_with_a_larger_vocabulary_than_the_model_is_refused() -> None:
    with pytest.raises(ValueError, match=r"sentiment-q has values of 1536 tokens; the model has 9"):
        Steerer([str(Q_HEAD_DIR)], DEVICE, 9, 1, reports=True)


@fused_or_not
@pytest.mark.parametrize("budget", [0.0, 0.02, 0.1, 0.25, 9.0, None])
def test_budget_bounds_the_kl_of_every_path(
    tmp_path: Path, budget: float | None, fused: bool
) -> None:
    """And what is reported is the KL of the distributions that were drawn from."""
    coefficient = 1.5
    folder, back = q_head(tmp_path, value, "lowrank"), ReadBack()
    steerer = Steerer([str(folder)], DEVICE, 3, 1, True, fused, back=back)
    whole = tilted(tmp_path, coefficient, fused=fused)
    asking = Asking()
    table = SharedTable(slots=1, columns=2, length=16)
    try:
        for path in product((A, B), repeat=LENGTH - 1):
            with table.ticket() as ticket:
                row = WorkerRequest(
                    tilt=RowTilt({0: coefficient}, None),
                    path_kl=ticket,
                    kl_budget=budget,
                )
                spent, left = 0.0, 0
                for prefix in (path[:i] for i in range(LENGTH)):
                    at, tokens = PREFIXES.index(prefix), len(prefix) + 1
                    hidden, before = HIDDEN[at : at + 1], base()[:1]
                    rows = asking.steered({0: row}, tokens)
                    made = steerer.steer(before.to(DEVICE, copy=True), hidden, rows, none, None)
                    made = made.cpu()
                    steered = not torch.equal(made, before)
                    torch.testing.assert_close(made, whole[at : at + 1] if steered else before)
                    spent += kl(before, made, torch.ones(1)).item()
                    left += not steered
                    back.flush(back.count)
                    found = table.read(ticket, tokens + 1)
                    assert found is not None
                    assert found.tolist() == pytest.approx([spent, left], abs=1e-6)
                assert spent <= (math.inf if budget is None else budget)
                assert left == {None: 0, 9.0: 0, 0.0: LENGTH}.get(budget, left)
    finally:
        table.close()


@fused_or_not
def test_mix_of_the_base_alone_scales_only_its_own_row(fused: bool) -> None:
    """No member runs for it; on a server with members, in a batch of several rows."""
    logits = torch.randn(5, 7).to(DEVICE)
    steerer = Steerer([], DEVICE, 7, 5, True, fused, ("tuned",), ReadBack())
    request = WorkerRequest(mix={"base": 2.0})
    rows = Asking(0, ("tuned",)).steered({3: request})
    made = steerer.steer(logits.clone(), torch.zeros(5, 3, device=DEVICE), rows, none, None)
    expected = logits.clone()
    expected[3] *= 2
    torch.testing.assert_close(made, expected)


TILTS = {
    "none": None,
    "one": RowTilt({0: 2.0}, None),
    "both": RowTilt({0: -1.0, 1: 0.5, 2: 1.5}, None),
    "top 3": RowTilt({1: 2.0}, 3),
    "top all": RowTilt({2: 1.0}, 99),
}
MIXES = {
    "none": None,
    "half": {"base": 0.5, "tuned": 0.5},
    "proxy": {"base": 1.0, "tuned": 1.0, "ref": -1.0},
    "member": {"ref": 1.0},
    "base": {"base": 1.0},
}
KINDS = [kind for kind in product(TILTS, MIXES) if kind != ("none", "none")]


def random_heads(folder: Path, width: int, vocabulary: int) -> list[str]:
    """A head of two rewards, and a tied one."""
    paths = []
    for architecture, rewards in (("lowrank", ("a", "b")), ("tied", ("c",))):
        config = HeadConfig(
            architecture=architecture,  # type: ignore[arg-type]
            rewards=rewards,
            hidden_size=width,
            rank=5 if architecture == "lowrank" else None,
            vocab_size=vocabulary,
            shift=tuple(0.1 for _ in rewards),
            scale=tuple(0.5 + i for i, _ in enumerate(rewards)),
            base_model="random",
        )
        head = QHead(config)
        torch.nn.init.normal_(head.factor.weight, std=0.3)
        head.save_pretrained(folder / architecture)
        paths.append(str(folder / architecture))
    return paths


def crowd(tickets: list[Ticket], budget: float | None) -> dict[int, WorkerRequest]:
    """A row of every kind, at every other place of a batch."""
    return {
        2 * i + 1: WorkerRequest(
            tilt=TILTS[tilt],
            mix=MIXES[mix],
            path_kl=ticket,
            kl_budget=budget if i % 3 else None,
        )
        for i, ((tilt, mix), ticket) in enumerate(zip(KINDS, tickets, strict=True))
    }


@pytest.mark.skipif(not RUN, reason="kernels run on a GPU or in Triton's interpreter")
@pytest.mark.parametrize(
    ("dtype", "budget", "temperature"),
    [(torch.float32, None, 1.0), (torch.float32, 0.4, 1.0), (torch.bfloat16, 0.4, 0.7)],
)
@pytest.mark.parametrize("vocabulary", [53, 64])
def test_large_batch_kernels_match_the_reference(
    tmp_path: Path, dtype: torch.dtype, budget: float | None, temperature: float, vocabulary: int
) -> None:
    """All kinds of rows in one batch, rows without a policy between them."""
    torch.manual_seed(0)
    width, size = 7, 2 * len(KINDS) + 1
    paths = random_heads(tmp_path, width, vocabulary)
    # Different ones in a row: among equal logits any may be of the top k.
    logits = torch.rand(size, vocabulary).argsort(-1).to(DEVICE, dtype) / 8
    hidden = torch.randn(size, width, device=DEVICE).to(dtype)
    lm_head = torch.randn(vocabulary + 2, width, device=DEVICE).to(dtype)
    behind = {
        "tuned": torch.randn(size, vocabulary, device=DEVICE).to(dtype),
        "ref": torch.randn(size, vocabulary + vocabulary % 2, device=DEVICE).to(dtype),
    }
    table = SharedTable(slots=2 * len(KINDS), columns=2, length=4)
    found, paid = [], []
    try:
        for fused in (False, True):
            tickets = [table.acquire() for _ in KINDS]
            rows = crowd(tickets, budget)
            temperatures = {row: temperature * (row // 2 % 2) for row in rows}
            back = ReadBack()
            steerer = Steerer(paths, DEVICE, vocabulary, size, True, fused, tuple(behind), back)
            made = steerer.steer(
                logits.clone(),
                hidden,
                Asking(steerer.columns, tuple(behind)).steered(rows, temperatures=temperatures),
                lambda index: {name: z[index] for name, z in behind.items()},
                lm_head,
            )
            assert made.dtype == torch.float32
            back.flush(back.count)
            found.append(made)
            paid.append(torch.from_numpy(np.stack([table.read(t, 2) for t in tickets])))
    finally:
        table.close()
    torch.testing.assert_close(found[0], found[1], rtol=2e-5, atol=2e-5)
    torch.testing.assert_close(paid[0], paid[1], rtol=1e-4, atol=1e-5)
    assert torch.equal(found[1][::2], logits[::2].float())
    unsteered = paid[1][:, 1].sum()
    assert (unsteered > 0) == (budget is not None)
    for i, (row, (_, left)) in enumerate(zip(rows, paid[1].tolist(), strict=True)):
        if left:
            assert torch.equal(found[1][row], logits[row].float()), KINDS[i]


@pytest.mark.skipif(not RUN, reason="kernels run on a GPU or in Triton's interpreter")
@pytest.mark.parametrize(("dtype", "head"), [(torch.float32, 0), (torch.bfloat16, 1)])
def test_warm_up_changes_neither_logits_nor_tables(
    tmp_path: Path, dtype: torch.dtype, head: int
) -> None:
    """The logits bit for bit, NaN among them, and no table is opened."""
    vocabulary, width = 53, 7
    paths = random_heads(tmp_path, width, vocabulary)[head : head + 1]  # fewer kinds of rows
    steerer = Steerer(paths, DEVICE, vocabulary, 6, False, True, ("tuned",))
    logits = torch.randn(6, 64, device=DEVICE).to(dtype)
    logits[1], logits[3, ::2] = torch.nan, -torch.inf
    before = logits.clone()
    hidden = torch.randn(6, width, device=DEVICE).to(dtype)
    lm_head = torch.randn(vocabulary, width, device=DEVICE).to(dtype)
    member = torch.randn(6, vocabulary, device=DEVICE)
    asked = []

    def members(rows: Tensor) -> dict[str, Tensor]:
        asked.append(rows)
        return {"tuned": member[rows]}

    assert steerer.warm_up(logits[:, :vocabulary], hidden, members, lm_head)
    assert torch.equal(logits.view(torch.uint8), before.view(torch.uint8))
    assert asked
    assert not steerer._tables._open
    unfused = Steerer([], DEVICE, vocabulary, 6, True)
    assert not unfused.warm_up(logits, hidden, members, lm_head)


def test_kernels_are_off_on_a_cpu() -> None:
    assert not runs_on(torch.device("cpu"))
    assert runs_on(torch.device("cuda")) == (find_spec("triton") is not None)
