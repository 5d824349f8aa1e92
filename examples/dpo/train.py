"""Trains a model by DPO on data of `cdserve collect --format preference` (docs/collect.md)."""

import argparse

import torch
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer


def main() -> None:
    """Trains and saves the model with its tokenizer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="model that sampled the responses")
    parser.add_argument("--data", required=True, help="output folder of `cdserve collect`")
    parser.add_argument("--config", default="preference", help="name of the data set in the folder")
    parser.add_argument("--out", required=True, help="folder of the trained model")
    parser.add_argument("--beta", type=float, default=0.1)
    parser.add_argument("--lr", type=float, default=1e-6)
    parser.add_argument("--epochs", type=float, default=1)
    parser.add_argument("--batch", type=int, default=16, help="pairs per step")
    parser.add_argument("--held-out", type=float, default=0.1, help="share of pairs for evaluation")
    args = parser.parse_args()

    pairs = load_dataset(args.data, args.config, split="train")
    split = pairs.train_test_split(args.held_out, seed=0)
    on_gpu = torch.cuda.is_available()
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    trainer = DPOTrainer(
        model=model,
        args=DPOConfig(
            output_dir=args.out,
            beta=args.beta,
            learning_rate=args.lr,
            num_train_epochs=args.epochs,
            per_device_train_batch_size=args.batch,
            per_device_eval_batch_size=args.batch,
            bf16=on_gpu,
            use_cpu=not on_gpu,
            gradient_checkpointing=on_gpu,
            logging_steps=10,
            save_strategy="no",
            report_to="none",
            seed=0,
        ),
        train_dataset=split["train"],
        eval_dataset=split["test"],
        processing_class=AutoTokenizer.from_pretrained(args.model),
    )
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    for name in ("eval_loss", "eval_rewards/accuracies", "eval_rewards/margins"):
        print(f"{name}: {before[name]:.4f} before, {after[name]:.4f} after")
    trainer.save_model(args.out)


if __name__ == "__main__":
    main()
