"""The alignment server: the operator's settings, resolved and validated, for the routes."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from cdserve import decoders, scoring
from cdserve.api.signs import check_signs
from cdserve.api.steering import worker_request
from cdserve.config import Settings
from cdserve.decoders import Decoder
from cdserve.engine.context import AlignmentContext
from cdserve.errors import ConfigError, PolicyError, safe_repr
from cdserve.failures import hide_unexpected
from cdserve.policy import FIELD, BudgetedPolicy, Policy, SearchPolicy, parse, parse_object
from cdserve.scoring import (
    Extractors,
    HeadOutput,
    ModelOutput,
    Objective,
    PairwiseJudge,
    Reward,
)
from cdserve.worker.request import WorkerRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class AlignmentServer:
    """Methods, rewards, presets and limits that requests of one API key may use.

    Attributes:
        settings: the operator's settings, with the limits of the key.
        decoders: decoder of each method.
        rewards: rewards by name.
        judges: pairwise judges by name.
        extractors: extractors of the answers that votes are about.
        q_columns: output of the Q-heads for each reward with a Q-head.
        presets: policy of each preset.
        methods: policy class of each method.
        key: name of the API key this view is restricted to; empty for unrestricted callers.
        max_candidates: maximum candidates of all running requests of the key; None for no limit.
    """

    settings: Settings
    decoders: Mapping[str, type[Decoder]]
    rewards: Mapping[str, Reward]
    extractors: Extractors
    q_columns: Mapping[str, int]
    presets: Mapping[str, Policy]
    methods: Mapping[str, type[Policy]]
    judges: Mapping[str, PairwiseJudge] = field(default_factory=dict)
    key: str = ""
    max_candidates: int | None = None

    @classmethod
    def build(
        cls,
        settings: Settings,
        outputs: Mapping[str, HeadOutput],
        q_columns: Mapping[str, int],
        models: Mapping[str, ModelOutput] | None = None,
    ) -> "AlignmentServer":
        """Resolves and validates the settings.

        Args:
            settings: the operator's settings.
            outputs: output of a value head for each reward with one.
            q_columns: output of the Q-heads for each reward with a Q-head.
            models: output of a reward model for each reward with one.

        Raises:
            ConfigError: a reward, a judge, an extractor, a preset or a decoder is invalid.
        """
        loaded = decoders.load(settings.decoders)
        rewards = scoring.build(settings.rewards, outputs, models)
        if settings.default_reward is not None and settings.default_reward not in rewards:
            raise ConfigError(
                f"default_reward is {settings.default_reward!r}; "
                f"rewards: {', '.join(sorted(rewards)) or 'none'}"
            )
        server = cls(
            settings=settings,
            decoders=loaded,
            rewards=rewards,
            judges=scoring.build_judges(settings.pairwise_judges),
            extractors=Extractors.load(settings.extractors, settings.error_details),
            q_columns=q_columns,
            presets={},
            methods={name: decoder.policy for name, decoder in loaded.items()},
        )
        presets = {name: server._preset(name, sent) for name, sent in settings.presets.items()}
        return replace(server, presets=presets)

    def resolve(self, sent: object) -> AlignmentContext | None:
        """Resolves the value of a request's ``alignment`` field; None for plain decoding.

        Raises:
            PolicyError: the policy is invalid; the message names the field, the value and what is
                accepted.
        """
        # The policy class may be a third party's.
        with hide_unexpected(FIELD, self.settings.error_details):
            policy = parse(self._with_kl_limit(sent), self.methods, self.presets)
            if policy is None:
                return None
            return self._context(policy, operator=isinstance(sent, str))

    def objective(self, policy: Policy) -> Objective:
        """The objective of a policy.

        Raises:
            PolicyError: a reward is unknown or cannot score what the method needs.
        """
        settings = self.settings
        default, details = settings.default_reward, settings.error_details
        return scoring.objective(policy, self.rewards, default, details)

    def preset_of(self, model: str | None) -> str | None:
        """Name of the preset in a model id such as ``demo:safe``; None for other ids."""
        name = self._suffix(model)
        return name if name in self.presets else None

    def is_unknown_preset(self, model: str | None) -> bool:
        """Whether a model id has the form of a preset's, but names no preset."""
        name = self._suffix(model)
        return name is not None and name not in self.presets

    def _suffix(self, model: str | None) -> str | None:
        """The part of a model id after the base model's name and a colon; None if it has none."""
        # The name itself may contain colons.
        base = f"{self.settings.model_name}:"
        return model.removeprefix(base) if model and model.startswith(base) else None

    def describe(self) -> dict[str, Any]:
        """Response body of ``GET /v1/alignment``."""
        methods = {
            name: {**policy.model_json_schema(), "whole_responses": policy.whole_responses}
            for name, policy in self.methods.items()
        }
        settings = self.settings.rewards
        return {
            "methods": {"none": {"type": "object", "properties": {"method": {"const": "none"}}}}
            | methods,
            "rewards": {
                name: {
                    **settings[name].model_dump(include=set(settings[name].public)),
                    "sign": self.settings.sign_of(name),
                    "prefixes": reward.prefixes,
                    "next_tokens": name in self.q_columns,
                    "default": name == self.settings.default_reward,
                }
                for name, reward in self.rewards.items()
            },
            "advice": scoring.advise(self.rewards),
            "members": {name: {} for name in self.settings.members},
            "extractors": self.extractors.names,
            "pairwise_judges": {
                name: judge.model_dump(include=set(judge.public))
                for name, judge in self.settings.pairwise_judges.items()
            },
            "presets": {n: p.model_dump(exclude_none=True) for n, p in self.presets.items()},
            "limits": {
                **self.settings.limits.model_dump(),
                **({} if self.max_candidates is None else {"max_candidates": self.max_candidates}),
            },
        }

    def summary(self) -> str:
        """One line for the log: methods, rewards and presets."""
        return (
            f"methods {', '.join(self.decoders)}; rewards {', '.join(self.rewards) or 'none'}; "
            f"presets {', '.join(self.presets) or 'none'}"
        )

    def _with_kl_limit(self, sent: object) -> object:
        """Applies the operator's ``max_kl_budget`` to a policy object.

        Raises:
            PolicyError: the policy has no KL budget, or a larger one.
        """
        limit = self.settings.limits.max_kl_budget
        if limit is None or not isinstance(sent, dict) or sent.get("method") == "none":
            return sent
        sent = {"kl_budget": limit, **sent}
        budget, method = sent["kl_budget"], self.methods.get(str(sent.get("method")))
        if method is not None and not issubclass(method, BudgetedPolicy):
            raise PolicyError(
                f"{FIELD}.method",
                f"is {safe_repr(sent['method'])}, which does not support a KL budget; "
                f"this server bounds the KL at {limit:g} nats",
                reason="limit",
            )
        if budget is None or (isinstance(budget, int | float) and budget > limit):
            raise PolicyError(
                f"{FIELD}.kl_budget",
                f"is {safe_repr(budget)}; this server accepts 0 to {limit:g} nats",
                reason="limit",
            )
        return sent

    def _context(self, policy: Policy, *, operator: bool) -> AlignmentContext:
        policy.check_limits(self.settings.limits)
        objective, extract = self.objective(policy), policy.answer_extractor
        if not operator:
            check_signs(objective.weights, self.settings, f"{FIELD}.rewards")
            final = policy.final_weights or {}
            check_signs(final, self.settings, f"{FIELD}.final_rewards")
        return AlignmentContext(
            policy=policy,
            decoder=self.decoders[policy.method],
            objective=objective,
            refusal=self.settings.refusal,
            judge=self._judge(policy.pairwise_judge),
            extractor=None if extract is None else self.extractors.of(extract),
            worker_request=replace(
                self._worker_request(policy, operator),
                token_stats_names=tuple(objective.token_stats),
            ),
        )

    def _judge(self, name: str | None) -> PairwiseJudge | None:
        if name is None:
            return None
        if name not in self.judges:
            known = ", ".join(map(repr, self.judges)) or "none"
            raise PolicyError(
                f"{FIELD}.selection.pairwise.judge",
                f"is {safe_repr(name)}; this server has {known}",
            )
        return self.judges[name]

    def _worker_request(self, policy: Policy, operator: bool) -> WorkerRequest:
        if policy.proposal_policy is None:
            return WorkerRequest()
        return worker_request(
            policy.proposal_policy,
            self.q_columns,
            self.settings,
            field=f"{FIELD}.proposal" if isinstance(policy, SearchPolicy) else FIELD,
            operator=operator,
        )

    def _preset(self, name: str, sent: Mapping[str, Any]) -> Policy:
        key = f"presets.{name}"
        try:
            policy = parse_object(sent, self.methods, FIELD)
            if policy is None:
                raise ConfigError(f"{key}: method 'none' is the base model; it needs no preset")
            self._context(policy, operator=True)
        except PolicyError as error:
            raise ConfigError(str(error.under(key))) from error
        return policy
