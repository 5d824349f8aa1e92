"""What the routes need to know: the operator's settings, resolved and checked."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from cdserve import decoders, scoring
from cdserve.api.steering import steering
from cdserve.config import Settings
from cdserve.decoders import Decoder
from cdserve.engine.context import AlignmentContext
from cdserve.errors import ConfigError, PolicyError, safe_repr
from cdserve.failures import hide_unexpected
from cdserve.policy import FIELD, BudgetedPolicy, Policy, SearchPolicy, parse, parse_object
from cdserve.scoring import HeadOutput, ModelOutput, Objective, Reward
from cdserve.worker.request import WorkerRequest

_OPERATORS = {"path", "q_head", "callable", "force", "url", "api_key_env", "engine"}
"""What is not told to clients of a reward's settings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AlignmentServer:
    """Decoders, rewards and presets by name, and the limits."""

    settings: Settings
    decoders: Mapping[str, type[Decoder]]
    rewards: Mapping[str, Reward]
    q_columns: Mapping[str, int]
    """Which output of the Q-heads each reward reads that has one."""
    presets: Mapping[str, Policy]
    methods: Mapping[str, type[Policy]]
    """Policy classes of the decoders that requests may name."""
    key: str = ""
    """Of whose holders it is what they may do; that of everybody else has none."""
    max_candidates: int | None = None
    """That the key's requests may hold at once."""

    @classmethod
    def build(
        cls,
        settings: Settings,
        outputs: Mapping[str, HeadOutput],
        q_columns: Mapping[str, int],
        models: Mapping[str, ModelOutput] | None = None,
    ) -> "AlignmentServer":
        """Resolves the settings.

        Args:
            outputs: value head output of each reward that has one.
            q_columns: Q-head output of each reward that has one.
            models: where the scores of reward models come from.

        Raises:
            ConfigError: a reward, a preset or a decoder is wrong.
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
            q_columns=q_columns,
            presets={},
            methods={name: decoder.policy for name, decoder in loaded.items()},
        )
        presets = {n: server._preset(n, sent) for n, sent in settings.presets.items()}
        return replace(server, presets=presets)

    def resolve(self, sent: object) -> AlignmentContext | None:
        """What a request's ``alignment`` field asks for; None for plain decoding.

        Raises:
            PolicyError: naming the field, the value and what is accepted.
        """
        with hide_unexpected(FIELD, self.settings.error_details):
            policy = parse(self._bounded(sent), self.methods, self.presets)
            return (
                None if policy is None else self._resolved(policy, operator=isinstance(sent, str))
            )

    def objective(self, policy: Policy) -> Objective:
        """What a policy asks to maximise.

        Raises:
            PolicyError: as ``scoring.objective``.
        """
        settings = self.settings
        default, details = settings.default_reward, settings.error_details
        return scoring.objective(policy, self.rewards, default, details)

    def preset_of(self, model: str | None) -> str | None:
        """The preset a model id such as ``demo:safe`` names; None for any other id."""
        name = self._suffix(model)
        return name if name in self.presets else None

    def lacks(self, model: str | None) -> bool:
        """Whether a model id has the form of a preset's, and no preset has its name."""
        name = self._suffix(model)
        return name is not None and name not in self.presets

    def _suffix(self, model: str | None) -> str | None:
        """What follows the base model's name and a colon, if it does; the name may hold colons."""
        base = f"{self.settings.model_name}:"
        return model.removeprefix(base) if model and model.startswith(base) else None

    def describe(self) -> dict[str, Any]:
        """The answer of ``GET /v1/alignment``."""
        methods = {name: policy.model_json_schema() for name, policy in self.methods.items()}
        return {
            "methods": {"none": {"type": "object", "properties": {"method": {"const": "none"}}}}
            | methods,
            "rewards": {
                name: {
                    **self.settings.rewards[name].model_dump(exclude=_OPERATORS),
                    "prefixes": reward.prefixes,
                    "next_tokens": name in self.q_columns,
                    "default": name == self.settings.default_reward,
                }
                for name, reward in self.rewards.items()
            },
            "members": {name: {} for name in self.settings.members},
            "presets": {n: p.model_dump(exclude_none=True) for n, p in self.presets.items()},
            "limits": {
                **self.settings.limits.model_dump(),
                **({} if self.max_candidates is None else {"max_candidates": self.max_candidates}),
            },
        }

    def summary(self) -> str:
        """One line for the log."""
        return (
            f"methods {', '.join(self.decoders)}; rewards {', '.join(self.rewards) or 'none'}; "
            f"presets {', '.join(self.presets) or 'none'}"
        )

    def _bounded(self, sent: object) -> object:
        """What a client sent, with the operator's KL budget where it has none of its own."""
        most = self.settings.limits.max_kl_budget
        if most is None or not isinstance(sent, dict) or sent.get("method") == "none":
            return sent
        sent = {"kl_budget": most, **sent}
        budget, method = sent["kl_budget"], self.methods.get(str(sent.get("method")))
        if method is not None and not issubclass(method, BudgetedPolicy):
            raise PolicyError(
                f"{FIELD}.method",
                f"is {safe_repr(sent['method'])}, which keeps no KL budget; this server bounds the "
                f"KL at {most:g} nats",
            )
        if budget is None or (isinstance(budget, int | float) and budget > most):
            raise PolicyError(
                f"{FIELD}.kl_budget",
                f"is {safe_repr(budget)}; this server accepts 0 to {most:g} nats",
            )
        return sent

    def _resolved(self, policy: Policy, *, operator: bool) -> AlignmentContext:
        policy.check_limits(self.settings.limits)
        objective = self.objective(policy)
        return AlignmentContext(
            policy=policy,
            decoder=self.decoders[policy.method],
            objective=objective,
            base=replace(self._steering(policy, operator), loglik_models=tuple(objective.models)),
        )

    def _steering(self, policy: Policy, operator: bool) -> WorkerRequest:
        if policy.proposal_policy is None:
            return WorkerRequest()
        return steering(
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
            self._resolved(policy, operator=True)
        except PolicyError as error:
            raise ConfigError(str(error.under(key))) from error
        return policy
