"""``cdserve heads``: train, compare, make, inspect, import and publish value heads and Q-heads."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from cdserve.commands import compare, confidence, train
from cdserve.errors import ConfigError

if TYPE_CHECKING:
    from value_heads import Head

_FILES = ("config.json", "model.safetensors", "README.md", "*.json", "*.png")


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the command with its sub-commands; each sets ``run``."""
    heads = commands.add_parser("heads", help="train, compare, inspect, import and publish heads")
    kinds = heads.add_subparsers(dest="heads_command", required=True)

    train.add(kinds)
    compare.add(kinds)
    confidence.add(kinds)

    inspect = kinds.add_parser("inspect", help="describe a head and check its files")
    inspect.add_argument("head", help="folder of the head, or repository on the Hub")
    inspect.add_argument(
        "--base", type=Path, help="folder of a model; check that the head belongs to it"
    )
    inspect.set_defaults(run=_inspect)

    imported = kinds.add_parser(
        "import", help="convert a checkpoint of TRL, OpenRLHF or a classifier to a head"
    )
    imported.add_argument(
        "checkpoint", type=Path, help="folder of the checkpoint, with safetensors weights"
    )
    imported.add_argument("out", type=Path, help="folder of the new head; must not exist")
    imported.add_argument(
        "--base-model", required=True, help="name of the checkpoint's backbone in the model card"
    )
    imported.add_argument(
        "--base", type=Path, help="folder of the backbone; the head then requires this model"
    )
    imported.add_argument("--rewards", nargs="+", metavar="NAME", help="one name per output")
    imported.set_defaults(run=_import)

    push = kinds.add_parser("push", help="publish a head's folder on the Hugging Face Hub")
    push.add_argument("head", type=Path, help="folder of the head")
    push.add_argument("repository", help="repository, as owner/name")
    push.add_argument(
        "--private", action="store_true", help="make the repository private if it is created"
    )
    push.set_defaults(run=_push)


def _inspect(args: argparse.Namespace) -> None:
    head = _load(args.head)
    config = head.config
    parameters = sum(weight.numel() for weight in head.parameters())
    print(f"{head.name}, {config.architecture}, kind {config.kind}, {parameters} parameters")
    for name, shift, scale in zip(config.rewards, config.shift, config.scale, strict=True):
        print(f"  reward {name}: shift {shift:g}, scale {scale:g}")
    position = "after" if config.post_norm else "before"
    print(
        f"  input: hidden_states[{config.layer}] {position} the final norm, width "
        f"{config.hidden_size}"
    )
    if config.position_limit is not None:
        print(f"  input: number of response tokens, up to {config.position_limit}")
    if config.vocab_size is not None:
        print(f"  output: values of {config.vocab_size} next tokens")
    print(f"  base model {config.base_model}, hash {config.base_hash or 'none (any base model)'}")
    if args.base is not None:
        from value_heads import check_base

        try:
            check_base(config, args.base)
        except (OSError, ValueError) as error:
            raise ConfigError(f"--base: {error}") from error
        print(f"  matches {args.base}")


def _import(args: argparse.Namespace) -> None:
    from value_heads import import_head

    if args.out.exists():
        raise ConfigError(f"{args.out} already exists; choose a new folder")
    try:
        head = import_head(
            args.checkpoint, base_model=args.base_model, rewards=args.rewards, base_dir=args.base
        )
    except (OSError, ValueError) as error:
        raise ConfigError(str(error)) from error
    head.save_pretrained(args.out)
    print(
        f"{args.out}: rewards {', '.join(head.config.rewards)}, input width "
        f"{head.config.hidden_size}"
    )


def _push(args: argparse.Namespace) -> None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    _load(args.head)
    api = HfApi()
    try:
        api.create_repo(args.repository, private=args.private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=args.repository, folder_path=args.head, allow_patterns=list(_FILES)
        )
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise ConfigError(f"{args.repository}: {error}") from error
    print(commit.commit_url)


def _load(place: str | Path) -> "Head":
    from value_heads import load_head

    try:
        return load_head(place)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{place}: {error}") from error
