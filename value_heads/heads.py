"""Heads: hidden states in, values out, and their folder on disk or on the Hub."""

import math
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from huggingface_hub import ModelCard, ModelCardData, ModelHubMixin, snapshot_download
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .config import Architecture, HeadConfig
from .rollouts import Rollouts

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
POSITION_FEATURES = 2
"""Inputs of a head that reads the position, in addition to the state."""


def position_features(position: Tensor, limit: int) -> Tensor:
    """Return log(1 + t) / log(1 + limit) and t / limit, float32 [..., 2], from 0 to 1.

    The logarithm tells the first tokens apart, the linear feature the last ones. t is clamped to
    the limit, since a fit has seen no later position.

    Args:
        position: int64 [...], number of response tokens t in each prefix; below 0, in the prompt,
            it counts as 0.
        limit: largest t, positive.
    """
    t = position.clamp(0, limit).float()
    return torch.stack([t.log1p() / math.log1p(limit), t / limit], dim=-1)


class Head(nn.Module, ModelHubMixin, library_name="cdserve", tags=["value-head"]):
    """Base of all heads: a configuration, a scale, and files.

    A head folder holds `config.json`, `model.safetensors` and the model card `README.md`.
    `save_pretrained` and `push_to_hub` are huggingface_hub's. `from_pretrained` is strict: it reads
    safetensors only, and accepts no missing and no unexpected weight.
    """

    architectures: ClassVar[tuple[Architecture, ...]]
    name: ClassVar[str]

    shift: Tensor
    scale: Tensor

    def __init__(self, config: HeadConfig, report: str = "") -> None:
        """Build a head with fresh weights; `report` goes into its model card.

        Raises:
            ValueError: the architecture belongs to another kind of head.
        """
        super().__init__()
        if config.architecture not in self.architectures:
            raise ValueError(
                f"architecture of a {self.name} must be one of {', '.join(self.architectures)}, "
                f"got {config.architecture!r}"
            )
        self.config = config
        self.report = report
        self.card_terms: tuple[str, str] | None = None
        """Name and units of the values, for the model card; None for the configuration's."""
        self.register_buffer("shift", torch.tensor(config.shift), persistent=False)
        self.register_buffer("scale", torch.tensor(config.scale), persistent=False)

    def rollout_values(
        self, data: Rollouts, rows: Tensor | None = None, lm_head: Tensor | None = None
    ) -> Tensor:
        """Return the value of every prefix that ends with a token of the responses.

        A value head reads the state after the token, a Q-head the state before it.

        Args:
            data: the responses.
            rows: int64 [n], places of the tokens; None for all.
            lm_head: the base model's output embedding; only a tied head reads it.

        Returns:
            float32 [n, G], in reward units.
        """
        raise NotImplementedError

    @property
    def _input_size(self) -> int:
        """Size of the inputs of a layer that reads the state, and the position if there is one."""
        positions = 0 if self.config.position_limit is None else POSITION_FEATURES
        return self.config.hidden_size + positions

    def _inputs(self, hidden: Tensor, position: Tensor | None) -> Tensor:
        """Return the inputs of such a layer, float32 [..., input size].

        Args:
            hidden: hidden states [..., d].
            position: int64 [...], number of response tokens in each prefix; None is accepted by a
                head that reads the state alone.

        Raises:
            ValueError: the head reads the position, and it is None.
        """
        inputs, limit = hidden.float(), self.config.position_limit
        if limit is None:
            return inputs
        if position is None:
            raise ValueError(
                f"position is missing; a head with position_limit {limit} reads the number of "
                "response tokens in each prefix"
            )
        return torch.cat([inputs, position_features(position, limit)], dim=-1)

    def _save_pretrained(self, save_directory: Path) -> None:
        (save_directory / CONFIG_NAME).write_text(self.config.to_json())
        save_file(self.state_dict(), save_directory / WEIGHTS_NAME, metadata={"format": "pt"})
        # safetensors makes the file readable by its owner only.
        (save_directory / WEIGHTS_NAME).chmod(0o644)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
    ) -> Self:
        """Load a head from a local folder, or from the Hub if there is none.

        Raises:
            ValueError: the configuration is invalid, or the weights do not fit it exactly or are
                not finite.
            FileNotFoundError: the folder lacks `config.json` or `model.safetensors`.
        """
        folder = _fetched(
            pretrained_model_name_or_path,
            revision=revision,
            cache_dir=cache_dir,
            token=token,
            local_files_only=local_files_only,
        )
        config = HeadConfig.from_json((folder / CONFIG_NAME).read_text())
        head = cls(config)
        head._load(folder / WEIGHTS_NAME)
        return head.eval()

    def _load(self, path: Path) -> None:
        if not path.is_file():
            raise FileNotFoundError(f"{path}: a head's weights are read from safetensors")
        try:
            weights = load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is not a safetensors file: {error}") from error
        expected = {name: tuple(value.shape) for name, value in self.state_dict().items()}
        shapes = {name: tuple(value.shape) for name, value in weights.items()}
        if shapes != expected:
            raise ValueError(f"{path} must hold {expected}, got {shapes}")
        for name, value in weights.items():
            # A NaN in a Q-head would reach all rows of a launch, also those of other requests.
            if not value.isfinite().all():
                raise ValueError(f"{path}: {name} has values that are not finite")
        self.load_state_dict(weights)

    def generate_model_card(self, *args: object, **kwargs: object) -> ModelCard:
        """Return the model card: front matter, description of the head, and training report."""
        config = self.config
        data = ModelCardData(
            base_model=config.base_model, library_name="cdserve", tags=["value-head"]
        )
        place = "after" if config.post_norm else "before"
        what, units = self.card_terms or self._card_terms
        if config.position_limit is not None:
            units += (
                " The head also reads the number of response tokens in the prefix, up to "
                f"{config.position_limit}; longer prefixes have the position "
                f"{config.position_limit}."
            )
        return ModelCard(
            f"---\n{data.to_yaml()}\n---\n\n"
            f"# {self.name}: {', '.join(config.rewards)}\n\n"
            f"Head of architecture {config.architecture} ({what}) on "
            f"`hidden_states[{config.layer}]` of `{config.base_model}`, {place} the final norm, "
            f"{config.hidden_size} wide.\n"
            f"{units}\n\n{self.report}"
        )

    @property
    def _card_terms(self) -> tuple[str, str]:
        """Name and units of the head's values, for the model card."""
        return f"{self.config.kind} value", "Values are in units of the raw reward."


class ValueHead(Head):
    """Head for values of prefixes, read from a frozen language model's hidden states.

    Source: a scalar head on the hidden state is TRL's ValueHead; the value of a prefix is V* of
    Controlled Decoding (arXiv 2310.17022, equation 1).
    """

    architectures = ("linear", "mlp", "mahalanobis")
    name = "Value head"

    def __init__(self, config: HeadConfig, report: str = "") -> None:
        """Build a head with fresh weights; `report` goes into its model card."""
        super().__init__(config, report)
        outputs = len(config.rewards)
        if config.architecture == "mahalanobis":
            self.net: nn.Module = MinusDistance(config.hidden_size)
        elif config.mlp_width is None:
            self.net = nn.Linear(self._input_size, outputs)
        else:
            self.net = nn.Sequential(
                nn.Linear(self._input_size, config.mlp_width),
                nn.GELU(),
                nn.Linear(config.mlp_width, outputs),
            )

    def forward(self, hidden: Tensor, position: Tensor | None = None) -> Tensor:
        """Return values float32 [..., G], in reward units.

        Args:
            hidden: hidden states [..., d].
            position: int64 [...], number of response tokens in each prefix; None is accepted by a
                head that reads the state alone.

        Raises:
            ValueError: the head reads the position, and it is None.
        """
        raw = self.logits(hidden, position)
        if self.config.output == "sigmoid":
            raw = raw.sigmoid()
        return self.shift + self.scale * raw

    def rollout_values(
        self, data: Rollouts, rows: Tensor | None = None, lm_head: Tensor | None = None
    ) -> Tensor:
        """Return the value of every prefix, read from the state after its last token."""
        after, position = data.after, data.number
        if rows is not None:
            after, position = after[rows], position[rows]
        values: Tensor = self(data.states[after], position)
        return values

    def logits(self, hidden: Tensor, position: Tensor | None = None) -> Tensor:
        """Return the net's outputs, float32 [..., G], before sigmoid, scale and shift."""
        logits: Tensor = self.net(self._inputs(hidden, position))
        return logits

    @property
    def _card_terms(self) -> tuple[str, str]:
        if self.config.architecture == "mahalanobis":
            return "minus a distance", "Its value has no unit; it is 0 at the most."
        return super()._card_terms


class MinusDistance(nn.Module):
    """The net of a "mahalanobis" head: -sqrt((h - centre)^T Sigma^-1 (h - centre)).

    Its weights come from `confidence_head`, not from a fit: float32 `centre` [d] and `factor`
    [d, d], with factor^T factor = Sigma^-1.
    """

    def __init__(self, hidden_size: int) -> None:
        """Initialise with the Euclidean distance from 0."""
        super().__init__()
        self.centre = nn.Parameter(torch.zeros(hidden_size), requires_grad=False)
        self.factor = nn.Parameter(torch.eye(hidden_size), requires_grad=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return float32 [..., 1], at most 0, of hidden states float32 [..., d]."""
        whitened = (hidden - self.centre) @ self.factor.T
        distance: Tensor = torch.linalg.vector_norm(whitened, dim=-1, keepdim=True)
        return -distance


class QHead(Head):
    """Head for values of every next token in one pass, read from a language model's hidden states.

    Q(s, z) = shift + scale (v(h) + u(h) . B_z), with h the state after prefix s, and its position
    if the head reads that. A "lowrank" head has its own B, a "tied" head uses the base model's LM
    head. V(s) = sum_z p(z|s) Q(s, z).

    Methods take the position as int64 [...], the number of response tokens in each prefix s; None
    is accepted by a head that reads the state alone.

    Source: Controlled Decoding (arXiv 2310.17022, section 3.2), token-wise, with the |V| outputs
    factored.
    """

    architectures = ("lowrank", "tied")
    name = "Q-head"

    def __init__(self, config: HeadConfig, report: str = "") -> None:
        """Build the head; u starts at zero, so that Q(s, z) is the same for every z."""
        super().__init__(config, report)
        outputs, width = len(config.rewards), config.rank or config.hidden_size
        self.state = nn.Linear(self._input_size, outputs)
        self.factor = nn.Linear(self._input_size, outputs * width)
        nn.init.zeros_(self.factor.weight)
        nn.init.zeros_(self.factor.bias)
        if config.architecture == "lowrank":
            tokens = torch.randn(outputs, config.vocab_size or 0, width) / width**0.5
            self.tokens = nn.Parameter(tokens)

    def factors(self, hidden: Tensor, position: Tensor | None = None) -> Tensor:
        """Return u, float32 [..., G, r], of hidden states [..., d]; for a tied head r = d."""
        flat = self.factor(self._inputs(hidden, position))
        factors: Tensor = flat.unflatten(-1, (len(self.config.rewards), -1))
        return factors

    def matrix(self, lm_head: Tensor | None) -> Tensor:
        """Return B, float32 [G, |V|, r].

        Args:
            lm_head: the base model's output embedding [>= |V|, d]; only a tied head reads it.

        Raises:
            ValueError: the head is tied, and the embedding is missing or too small.
        """
        if self.config.architecture == "lowrank":
            return self.tokens
        size = (self.config.vocab_size or 0, self.config.hidden_size)
        if lm_head is None or len(lm_head) < size[0] or lm_head.shape[1] != size[1]:
            shape = None if lm_head is None else list(lm_head.shape)
            raise ValueError(f"a tied head needs an LM head of {list(size)}, got {shape}")
        return lm_head[: size[0]].float().expand(len(self.config.rewards), -1, -1)

    def q_of_token(
        self,
        hidden: Tensor,
        tokens: Tensor,
        lm_head: Tensor | None = None,
        position: Tensor | None = None,
    ) -> Tensor:
        """Return Q(s, z) of one token per state, float32 [N, G].

        Args:
            hidden: states [N, d].
            tokens: token ids, int64 [N].
            lm_head: the base model's output embedding; only a tied head reads it.
        """
        chosen = self.matrix(lm_head)[:, tokens].transpose(0, 1)
        return self._scaled(hidden, position, (self.factors(hidden, position) * chosen).sum(-1))

    def rollout_values(
        self, data: Rollouts, rows: Tensor | None = None, lm_head: Tensor | None = None
    ) -> Tensor:
        """Return the value of every prefix, read from the state before its last token."""
        before, tokens, position = data.before, data.tokens, data.number - 1
        if rows is not None:
            before, tokens, position = before[rows], tokens[rows], position[rows]
        return self.q_of_token(data.states[before], tokens, lm_head, position)

    def expected(
        self,
        hidden: Tensor,
        p: Tensor,
        lm_head: Tensor | None = None,
        position: Tensor | None = None,
    ) -> Tensor:
        """Return V(s) = sum_z p(z|s) Q(s, z), float32 [N, G], for states [N, d] and p [N, |V|]."""
        mean = torch.einsum("nv,gvr->ngr", p, self.matrix(lm_head))
        return self._scaled(hidden, position, (self.factors(hidden, position) * mean).sum(-1))

    def _scaled(self, hidden: Tensor, position: Tensor | None, by_token: Tensor) -> Tensor:
        by_state = self.state(self._inputs(hidden, position))
        values: Tensor = self.shift + self.scale * (by_state + by_token)
        return values

    def forward(
        self, hidden: Tensor, lm_head: Tensor | None = None, position: Tensor | None = None
    ) -> Tensor:
        """Return values float32 [..., G, |V|], in reward units, of hidden states [..., d]."""
        factors = self.factors(hidden, position)
        by_token = torch.einsum("...gr,gvr->...gv", factors, self.matrix(lm_head))
        values: Tensor = self.state(self._inputs(hidden, position))[..., None] + by_token
        return self.shift[:, None] + self.scale[:, None] * values


def load_head(place: str | Path) -> Head:
    """Load a head of either kind from a local folder, or from the Hub if there is none.

    Raises:
        ValueError, FileNotFoundError: as in `Head.from_pretrained`.
    """
    folder = _fetched(place)
    config = HeadConfig.from_json((folder / CONFIG_NAME).read_text())
    kind = ValueHead if config.architecture in ValueHead.architectures else QHead
    return kind.from_pretrained(folder)


def _fetched(place: str | Path, **options: Any) -> Path:
    folder = Path(place)
    if folder.is_dir():
        return folder
    patterns = [CONFIG_NAME, WEIGHTS_NAME]
    return Path(snapshot_download(str(place), allow_patterns=patterns, **options))
