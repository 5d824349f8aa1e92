"""Blockwise controlled decoding: best-of-K over blocks of M tokens (arXiv 2310.17022)."""

from collections.abc import AsyncGenerator, Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator

from cdserve.decoders.candidate import Decision, Proposal
from cdserve.decoders.continuation_gain import continuation_gain
from cdserve.decoders.final_rewards import FinalRewardsField
from cdserve.decoders.gate import gated_search
from cdserve.decoders.lookahead import rollout_tokens
from cdserve.decoders.registry import decoder
from cdserve.decoders.search import search
from cdserve.decoders.selection import Argmax, Beam, OrderDependentRule, rule
from cdserve.decoders.subtrees import Subtrees
from cdserve.decoders.until import UntilField
from cdserve.errors import PolicyError, safe_repr
from cdserve.policy import FIELD, Gate, Limits, Schedule, SelectingPolicy, at_most


class BlockwiseCDPolicy(FinalRewardsField, UntilField, SelectingPolicy):
    """Samples ``k`` blocks of ``m`` tokens, keeps one by prefix value, and continues from it."""

    method: Literal["blockwise_cd"]
    k: Schedule = Field(
        description="Blocks drawn per block kept; a list has one number per block, "
        "with the last repeated."
    )
    m: int = Field(ge=1, description="Block length in tokens; with `until` the most.")
    beam_width: int = Field(
        default=1,
        ge=1,
        description="Prefixes kept, each continued by k blocks; the best finished one is returned.",
    )
    subtrees: int = Field(
        default=1,
        ge=1,
        description="Independent searches, each of which draws k blocks per block kept; the best "
        "of their responses is returned. Requires the selection argmax, and cannot be combined "
        "with `beam_width`, `gate` and `kl_budget`.",
    )
    continuation_gain: Literal["auto"] | Annotated[float, Field(ge=0, le=1e12)] = Field(
        default=0.0,
        description="Added to the score of unfinished candidates in decisions in which others have "
        "ended, in units of the score: the gain of the decisions still to come. 'auto' estimates "
        "it from the value head's figures on held-out responses.",
    )
    lookahead: int | None = Field(
        default=None,
        ge=1,
        description="Length, at most, of the greedy continuation that an unfinished block is "
        "scored with, in tokens, as if the response ended there; rewards then need not score "
        "prefixes. If absent, prefixes are scored.",
    )
    gate: Gate | None = Field(
        default=None,
        description="When fewer than k candidates per block are enough; all k are drawn if absent. "
        "Requires the selection argmax, and cannot be combined with `beam_width`, `subtrees`, "
        "`final_rewards` and `kl_budget`.",
    )

    scores_prefixes: ClassVar[bool] = True

    @field_validator("beam_width")
    @classmethod
    def _keeps_the_highest(cls, beam_width: int, info: ValidationInfo) -> int:
        if beam_width > 1 and info.data.get("selection", "argmax") != "argmax":
            raise ValueError("it must be 1 unless selection is 'argmax'")
        if beam_width > 1 and info.data.get("kl_budget") is not None:
            raise ValueError("it must be 1 with a kl_budget")
        return beam_width

    @field_validator("continuation_gain")
    @classmethod
    def _is_of_the_highest(cls, gain: float | str, info: ValidationInfo) -> float | str:
        if gain == "auto" and info.data.get("selection", "argmax") != "argmax":
            raise ValueError("it must be a number unless selection is 'argmax'")
        return gain

    @property
    def keeps_several(self) -> bool:
        return self.beams > 1

    @property
    def beams(self) -> int:
        """Prefixes kept: beams, or one of each subtree."""
        return max(self.beam_width, self.subtrees)

    @property
    def outlook_field(self) -> str | None:
        return "continuation_gain" if self.continuation_gain == "auto" else None

    @property
    def schedule(self) -> list[int]:
        """K of each decision, the last repeated."""
        return [self.k] if isinstance(self.k, int) else self.k

    @property
    def width(self) -> int:
        return self.beams * max(self.schedule)

    def most_tokens(self, max_tokens: int) -> int:
        tokens = super().most_tokens(max_tokens)
        if self.lookahead is None:
            return tokens
        shortest = 1 if self.until else self.m
        return tokens + self.width * rollout_tokens(max_tokens, shortest, self.lookahead)

    @property
    def values_prefixes(self) -> bool:
        return self.lookahead is None

    @property
    def concurrent(self) -> int:
        if self.gate is None:
            return self.width
        scouts, width = self.gate.scouts, self.width
        return max(scouts, min(self.gate.at_once or width, width - scouts))

    def check_limits(self, limits: Limits) -> None:
        if isinstance(self.k, int):
            at_most(f"{FIELD}.k", self.k, limits.max_k)
        else:
            for i, k in enumerate(self.k):
                at_most(f"{FIELD}.k.{i}", k, limits.max_k)
        if self.gate is not None:
            self._check_gate(self.gate)
        if self.subtrees > 1:
            self._check_alone("subtrees", {"'beam_width' unless it is 1": self.beam_width > 1})
        if self.continuation_gain == "auto" and (self.until or self.lookahead):
            raise PolicyError(
                f"{FIELD}.continuation_gain",
                "is 'auto', whose estimate is that of values after blocks of m tokens; it must be "
                f"a number with {'until' if self.until else 'lookahead'!r}",
                reason="combination",
            )
        if self.width > limits.max_k:
            name = "subtrees" if self.subtrees > 1 else "beam_width"
            k = self.width // self.beams
            raise PolicyError(
                f"{FIELD}.{name}",
                f"is {safe_repr(self.beams)}, which draws {safe_repr(self.width)} blocks at "
                f"once; this server accepts up to {limits.max_k}: with k = {k}, "
                f"{name} from 1 to {limits.max_k // k}",
                reason="limit",
            )

    def _check_alone(self, name: str, excluded: Mapping[str, bool]) -> None:
        """Checks the fields that another one cannot be combined with."""
        excluded = {
            "'selection' unless it is 'argmax'": self.selection != "argmax",
            **excluded,
            "'kl_budget', the request's or the server's": self.kl_budget is not None,
        }
        for field, combined in excluded.items():
            if combined:
                detail = f"cannot be combined with {field}"
                raise PolicyError(f"{FIELD}.{name}", detail, reason="combination")

    def _check_gate(self, gate: Gate) -> None:
        """Checks the fields that a gate cannot be combined with."""
        beams = {
            "'beam_width' unless it is 1": self.beam_width > 1,
            "'subtrees' unless it is 1": self.subtrees > 1,
            "'final_rewards', whose scale is not that of the threshold": bool(self.final_rewards),
        }
        self._check_alone("gate", beams)
        if gate.scouts >= self.width:
            raise PolicyError(
                f"{FIELD}.gate.scouts",
                f"is {safe_repr(gate.scouts)}; it must be below k, which is at most {self.width}",
                reason="combination",
            )


@decoder("blockwise_cd")
class BlockwiseCD:
    """The search with blocks, each of which is streamed as soon as it is selected."""

    policy = BlockwiseCDPolicy

    @classmethod
    def run(
        cls, policy: BlockwiseCDPolicy, proposal: Proposal, seed: int | None
    ) -> AsyncGenerator[Decision, None]:
        m, schedule, lookahead = policy.m, policy.schedule, policy.lookahead
        final_score = proposal.score_final if policy.final_rewards else None

        def gain(draws: int) -> float:
            if policy.continuation_gain != "auto":
                return policy.continuation_gain
            later = schedule[draws:] or schedule[-1:]
            return continuation_gain(proposal.outlook(draws * m), m, later)

        if policy.gate is not None:
            return gated_search(proposal, policy.gate, schedule, m, gain, lookahead)
        if policy.beams == 1:
            select = rule(policy, seed)
            if policy.final_rewards and type(select) is Argmax:
                select = OrderDependentRule()  # the order depends on which candidates have ended
            return search(
                proposal,
                k=policy.k,
                m=m,
                select=select,
                budget=policy.kl_budget,
                gain=gain,
                lookahead=lookahead,
                final_score=final_score,
            )
        # All beams begin as the prompt, which draws the blocks of all of them.
        counts = [policy.beams * schedule[0], *(schedule[1:] or schedule)]
        keep = Subtrees(policy.subtrees) if policy.subtrees > 1 else Beam(policy.beam_width)
        return search(
            proposal,
            k=counts,
            m=m,
            select=keep,
            gain=gain,
            lookahead=lookahead,
            final_score=final_score,
        )
