"""Heads: hidden states in, values out, and their folder on disk or on the Hub."""

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
        return ModelCard(
            f"---\n{data.to_yaml()}\n---\n\n"
            f"# {self.name}: {', '.join(config.rewards)}\n\n"
            f"A {config.architecture} head ({what}) on `hidden_states[{config.layer}]`"
            f" of `{config.base_model}`, {place} the final norm, {config.hidden_size} wide.\n"
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
            self.net = nn.Linear(config.hidden_size, outputs)
        else:
            self.net = nn.Sequential(
                nn.Linear(config.hidden_size, config.mlp_width),
                nn.GELU(),
                nn.Linear(config.mlp_width, outputs),
            )

    def forward(self, hidden: Tensor) -> Tensor:
        """Return values float32 [..., G], in reward units, of hidden states [..., d]."""
        raw = self.logits(hidden)
        if self.config.output == "sigmoid":
            raw = raw.sigmoid()
        return self.shift + self.scale * raw

    def rollout_values(
        self, data: Rollouts, rows: Tensor | None = None, lm_head: Tensor | None = None
    ) -> Tensor:
        """Return the value of every prefix, read from the state after its last token."""
        values: Tensor = self(data.states[data.after if rows is None else data.after[rows]])
        return values

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the net's outputs, float32 [..., G], before sigmoid, scale and shift."""
        logits: Tensor = self.net(hidden.float())
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

    Q(s, z) = shift + scale (v(h) + u(h) . B_z), with h the state after prefix s. A "lowrank" head
    has its own B, a "tied" head uses the base model's LM head. V(s) = sum_z p(z|s) Q(s, z).

    Source: Controlled Decoding (arXiv 2310.17022, section 3.2), token-wise, with the |V| outputs
    factored.
    """

    architectures = ("lowrank", "tied")
    name = "Q-head"

    def __init__(self, config: HeadConfig, report: str = "") -> None:
        """Build the head; u starts at zero, so that Q(s, z) is the same for every z."""
        super().__init__(config, report)
        outputs, width = len(config.rewards), config.rank or config.hidden_size
        self.state = nn.Linear(config.hidden_size, outputs)
        self.factor = nn.Linear(config.hidden_size, outputs * width)
        nn.init.zeros_(self.factor.weight)
        nn.init.zeros_(self.factor.bias)
        if config.architecture == "lowrank":
            tokens = torch.randn(outputs, config.vocab_size or 0, width) / width**0.5
            self.tokens = nn.Parameter(tokens)

    def factors(self, hidden: Tensor) -> Tensor:
        """Return u, float32 [..., G, r], of hidden states [..., d]; for a tied head r = d."""
        factors: Tensor = self.factor(hidden.float()).unflatten(-1, (len(self.config.rewards), -1))
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

    def q_of_token(self, hidden: Tensor, tokens: Tensor, lm_head: Tensor | None = None) -> Tensor:
        """Return Q(s, z) of one token per state, float32 [N, G].

        Args:
            hidden: states [N, d].
            tokens: token ids, int64 [N].
            lm_head: the base model's output embedding; only a tied head reads it.
        """
        chosen = self.matrix(lm_head)[:, tokens].transpose(0, 1)
        return self._scaled(hidden, (self.factors(hidden) * chosen).sum(-1))

    def rollout_values(
        self, data: Rollouts, rows: Tensor | None = None, lm_head: Tensor | None = None
    ) -> Tensor:
        """Return the value of every prefix, read from the state before its last token."""
        before, tokens = data.before, data.tokens
        if rows is not None:
            before, tokens = before[rows], tokens[rows]
        return self.q_of_token(data.states[before], tokens, lm_head)

    def expected(self, hidden: Tensor, p: Tensor, lm_head: Tensor | None = None) -> Tensor:
        """Return V(s) = sum_z p(z|s) Q(s, z), float32 [N, G], for states [N, d] and p [N, |V|]."""
        mean = torch.einsum("nv,gvr->ngr", p, self.matrix(lm_head))
        return self._scaled(hidden, (self.factors(hidden) * mean).sum(-1))

    def _scaled(self, hidden: Tensor, by_token: Tensor) -> Tensor:
        values: Tensor = self.shift + self.scale * (self.state(hidden.float()) + by_token)
        return values

    def forward(self, hidden: Tensor, lm_head: Tensor | None = None) -> Tensor:
        """Return values float32 [..., G, |V|], in reward units, of hidden states [..., d]."""
        by_token = torch.einsum("...gr,gvr->...gv", self.factors(hidden), self.matrix(lm_head))
        values: Tensor = self.state(hidden.float())[..., None] + by_token
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
