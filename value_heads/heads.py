"""The value head: hidden states in, values out, and its folder on disk or on the Hub."""

from pathlib import Path

import torch
from huggingface_hub import ModelCard, ModelCardData, ModelHubMixin, snapshot_download
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .config import HeadConfig

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"


class ValueHead(nn.Module, ModelHubMixin, library_name="cdserve", tags=["value-head"]):
    """Values of prefixes, read off a frozen language model's hidden states.

    A head folder holds `config.json`, `model.safetensors` and the model card `README.md`.
    `save_pretrained` and `push_to_hub` are huggingface_hub's; `from_pretrained` is strict: it
    reads safetensors alone and accepts no missing and no unexpected weight.

    Source: a scalar head on the hidden state is TRL's ValueHead; the value of a prefix is V* of
    Controlled Decoding (arXiv 2310.17022, equation 1).
    """

    def __init__(self, config: HeadConfig, report: str = "") -> None:
        """Build a head with fresh weights; `report` goes into its model card."""
        super().__init__()
        self.config = config
        self.report = report
        outputs = len(config.rewards)
        if config.mlp_width is None:
            self.net: nn.Module = nn.Linear(config.hidden_size, outputs)
        else:
            self.net = nn.Sequential(
                nn.Linear(config.hidden_size, config.mlp_width),
                nn.GELU(),
                nn.Linear(config.mlp_width, outputs),
            )
        self.register_buffer("shift", torch.tensor(config.shift), persistent=False)
        self.register_buffer("scale", torch.tensor(config.scale), persistent=False)

    shift: Tensor
    scale: Tensor

    @classmethod
    def from_config(cls, config: HeadConfig) -> "ValueHead":
        """Build a head with fresh weights."""
        return cls(config)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return values float32 [..., G], in reward units, of hidden states [..., d]."""
        values: Tensor = self.shift + self.scale * self.net(hidden.float())
        return values

    def _save_pretrained(self, save_directory: Path) -> None:
        (save_directory / CONFIG_NAME).write_text(self.config.to_json())
        save_file(self.state_dict(), save_directory / WEIGHTS_NAME, metadata={"format": "pt"})
        (save_directory / WEIGHTS_NAME).chmod(0o644)  # safetensors leaves it to its owner alone

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
    ) -> "ValueHead":
        """Load a head from a local folder, or else from the Hub.

        Raises:
            ValueError: the configuration is wrong, or the weights do not fit it exactly.
            FileNotFoundError: the folder lacks `config.json` or `model.safetensors`.
        """
        folder = Path(pretrained_model_name_or_path)
        if not folder.is_dir():
            folder = Path(
                snapshot_download(
                    str(pretrained_model_name_or_path),
                    revision=revision,
                    cache_dir=cache_dir,
                    token=token,
                    local_files_only=local_files_only,
                    allow_patterns=[CONFIG_NAME, WEIGHTS_NAME],
                )
            )
        config = HeadConfig.from_json((folder / CONFIG_NAME).read_text())
        head = cls(config)
        head._load(folder / WEIGHTS_NAME)
        return head.eval()

    def _load(self, path: Path) -> None:
        if not path.is_file():
            raise FileNotFoundError(f"{path}: a value head's weights are read from safetensors")
        try:
            weights = load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is not a safetensors file: {error}") from error
        expected = {name: tuple(value.shape) for name, value in self.state_dict().items()}
        found = {name: tuple(value.shape) for name, value in weights.items()}
        if found != expected:
            raise ValueError(f"{path} must hold {expected}, got {found}")
        self.load_state_dict(weights)

    def generate_model_card(self, *args: object, **kwargs: object) -> ModelCard:
        """Return the head's model card: front matter, what it reads, its training report."""
        config = self.config
        data = ModelCardData(
            base_model=config.base_model, library_name="cdserve", tags=["value-head"]
        )
        place = "after" if config.post_norm else "before"
        return ModelCard(
            f"---\n{data.to_yaml()}\n---\n\n"
            f"# Value head: {', '.join(config.rewards)}\n\n"
            f"A {config.architecture} head ({config.kind} value) on `hidden_states[{config.layer}]`"
            f" of `{config.base_model}`, {place} the final norm, {config.hidden_size} wide.\n"
            f"Values are in units of the raw reward.\n\n{self.report}"
        )
