"""Identification of a head's base model, by a hash of its files."""

import hashlib
from pathlib import Path

from .config import HeadConfig


def hash_base(base_dir: Path) -> str:
    """Return the sha256 over a base model's `config.json` and its safetensors files, by name.

    Raises:
        FileNotFoundError: the folder has no `config.json` or no weights in safetensors.
    """
    weights = sorted(base_dir.glob("*.safetensors"))
    if not weights:
        raise FileNotFoundError(f"{base_dir} has no .safetensors file")
    digest = hashlib.sha256()
    for path in (base_dir / "config.json", *weights):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def check_base(config: HeadConfig, base_dir: Path, *, force: bool = False) -> None:
    """Check that a head is attached to the base model it was trained on.

    A head without a `base_hash` fits any base; `force` skips the check.

    Raises:
        ValueError: the folder's hash is not the head's `base_hash`.
    """
    if force or config.base_hash is None:
        return
    actual = hash_base(base_dir)
    if actual != config.base_hash:
        raise ValueError(
            f"base_hash of the head ({config.base_model}) is {config.base_hash[:12]}..., but "
            f"{base_dir} has {actual[:12]}...; use the head with the model that it was trained on "
            "(`force: true` in the settings skips this check)"
        )
