"""The peer of `benchmarks/preferences.py`: TRL's RewardTrainer or DPOTrainer, one step for each line of standard input.

A process of its own, with both cores. The answers are lines of JSON: the step's seconds, and the process's peak memory.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from benchmarks.preference_workload import PreferenceWorkload
from benchmarks.reward_trl import ANY_LENGTH, COMMON, reward_trainer
from benchmarks.trl_turns import Turns, answers_stream


def dpo_trainer(
    model: Path, rows: Sequence[dict[str, str]], output: Path, callbacks: list[TrainerCallback], **settings: Any
) -> Any:
    from trl import DPOConfig, DPOTrainer

    return DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        ref_model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        args=DPOConfig(output_dir=str(output), **COMMON | ANY_LENGTH | settings),
        train_dataset=Dataset.from_list(list(rows)),
        processing_class=AutoTokenizer.from_pretrained(model),
        callbacks=callbacks,
    )


def main() -> None:
    answers = answers_stream()
    folder, job, kind, output, pairs_per_step, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    workload = PreferenceWorkload(Path(folder))
    rows = workload.pairs(kind)
    settings: dict[str, Any] = {
        "per_device_train_batch_size": int(pairs_per_step),
        "train_sampling_strategy": "sequential",
        "num_train_epochs": 1,
        "learning_rate": 1e-6,
    }
    turns = Turns(answers)
    if job == "dpo":
        trainer = dpo_trainer(workload.policy, rows, Path(output), [turns], **settings)
    else:
        tokenizer = AutoTokenizer.from_pretrained(workload.reward)

        def ids(text: str) -> list[int]:
            return [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]

        pairs = [(ids(row["prompt"] + row["chosen"]), ids(row["prompt"] + row["rejected"])) for row in rows]
        trainer = reward_trainer(workload.reward, pairs, Path(output), [turns], **settings)
    found = sum(len(row[name]) for row in trainer.train_dataset for name in ("chosen_ids", "rejected_ids"))
    prompts = 0 if job == "dpo" else 1
    expected = sum(c + r + 2 * prompts * p for p, c, r in workload.lengths(kind))
    if found != expected:
        raise SystemExit(f"TRL has {found} tokens of answers where {expected} were made")
    trainer.train()


if __name__ == "__main__":
    main()
