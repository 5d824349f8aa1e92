"""Reads a folder of `cdserve collect` as TRL does; run it in an environment with TRL.

    python tests/collection/trl_check.py FOLDER [--model MODEL]

Every data set of TRL's formats is loaded by `datasets`, and goes through the checks and the
preparation of the trainer that reads it: DPO's, SFT's or KTO's. With a model they make one step.
"""

import argparse
import json
import re
import tempfile
from pathlib import Path
from typing import Any

from datasets import Dataset, get_dataset_config_names, load_dataset
from trl import (
    DPOConfig,
    DPOTrainer,
    KTOConfig,
    KTOTrainer,
    SFTConfig,
    SFTTrainer,
    apply_chat_template,
    is_conversational,
    unpair_preference_dataset,
)

COLUMNS = {
    "preference": ("prompt", "chosen", "rejected"),
    "sft": ("prompt", "completion"),
    "unpaired": ("prompt", "completion", "label"),
}
TRAINERS = {
    "preference": (DPOTrainer, DPOConfig),
    "sft": (SFTTrainer, SFTConfig),
    "unpaired": (KTOTrainer, KTOConfig),
}


def main() -> None:
    """Checks every data set in the folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", help="a small one, for one step of every trainer")
    args = parser.parse_args()
    for name in get_dataset_config_names(str(args.folder)):
        with tempfile.TemporaryDirectory() as cache:
            rows = load_dataset(str(args.folder), name, split="train", cache_dir=cache)
            check(args.folder, name, rows, args.model)


def check(folder: Path, name: str, rows: Dataset, model: str | None) -> None:
    """Describes a data set; fails if TRL cannot read it."""
    written = [
        json.loads(line)
        for path in sorted(folder.glob(f"{name}-?????-of-?????.jsonl"))
        for line in path.read_text(encoding="utf-8").split("\n")[:-1]
    ]
    assert rows.to_list() == written, f"{name}: datasets reads other rows than were written"
    kind = re.sub("-(text|chat)$", "", name)
    first = rows[0]
    chat = is_conversational(first)
    parts = [f"{name}: {len(rows)} rows, {'conversational' if chat else 'standard'}"]
    parts.append(f"columns {', '.join(rows.column_names)}")
    if kind in COLUMNS:
        assert all(is_conversational(row) == chat for row in rows)
        used = rows.select_columns(COLUMNS[kind])
        if kind == "preference":
            parts.append(f"{len(unpair_preference_dataset(used))} unpaired")
        if model is not None:
            parts.append(one_step(kind, rows, used, model, chat))
    print("; ".join(parts))


def one_step(kind: str, rows: Dataset, used: Dataset, model: str, chat: bool) -> str:
    """The loss of one step of the format's trainer, on all columns."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    if chat:
        apply_chat_template(used[0], tokenizer)
    trainer, config = TRAINERS[kind]
    with tempfile.TemporaryDirectory() as out:
        options: dict[str, Any] = {"bf16": False, "use_cpu": True, "gradient_checkpointing": False}
        instance = trainer(
            model=model,
            args=config(
                output_dir=out,
                max_steps=1,
                per_device_train_batch_size=4,
                report_to="none",
                save_strategy="no",
                disable_tqdm=True,
                model_init_kwargs={"dtype": "float32"},
                **options,
            ),
            train_dataset=rows,
            processing_class=tokenizer,
        )
        loss = instance.train().training_loss
    return f"{trainer.__name__} made a step, loss {loss:.4f}"


if __name__ == "__main__":
    main()
