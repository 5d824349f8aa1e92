"""Members, checked before the engine starts."""

from typing import Any

from transformers import AutoTokenizer

from cdserve.config import Settings
from cdserve.errors import ConfigError


def check_tokenizers(settings: Settings) -> None:
    """Checks that the members have the tokenizer of the served model.

    Raises:
        ConfigError: a token id has another meaning, or a tokenizer cannot be read.
    """
    if not settings.members:
        return
    base = _tokenizer("model", settings.model)
    for name, path in settings.members.items():
        member = _tokenizer(f"members.{name}", path)
        if len(member) != len(base):
            raise ConfigError(
                f"members.{name}: its tokenizer has {len(member)} tokens, the model's {len(base)}"
            )
        ids = range(len(base))
        pairs = zip(
            ids, base.convert_ids_to_tokens(ids), member.convert_ids_to_tokens(ids), strict=True
        )
        for token_id, ours, theirs in pairs:
            if ours != theirs:
                raise ConfigError(
                    f"members.{name}: member {name!r} decodes token {token_id} as {theirs!r}, the "
                    f"model as {ours!r}; members need the model's own tokenizer"
                )


def _tokenizer(key: str, path: str) -> Any:
    try:
        return AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{key}: {path} has no tokenizer that can be read: {error}") from error
