"""Settings of TRL's trainers, and its RewardTrainer on rows that are token ids already.

Float32, without gradient checkpointing.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback

Ids = list[int]
Pair = tuple[Ids, Ids]
"""The better text, and the worse one."""

COMMON: dict[str, Any] = {
    "gradient_accumulation_steps": 1,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "constant",
    "adam_beta1": 0.9,
    "adam_beta2": 0.95,
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "bf16": False,
    "fp16": False,
    "use_cpu": True,
    "gradient_checkpointing": False,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "logging_steps": 1_000_000,
}
"""What its trainers are told, to do what ours do."""
ANY_LENGTH: dict[str, Any] = {"max_length": None}
"""What those of pairs are told besides."""


def reward_trainer(
    model: Path, pairs: Sequence[Pair], output: Path, callbacks: Sequence[TrainerCallback] = (), **settings: Any
) -> Any:
    """Make a RewardTrainer over pairs.

    Args:
        model: a sequence classifier of one label, with its head.
        pairs: rows.
        output: TRL's folder.
        callbacks: of Transformers.
        settings: on top of the common ones.
    """
    from trl import RewardConfig, RewardTrainer

    network = AutoModelForSequenceClassification.from_pretrained(model, num_labels=1, dtype=torch.float32)
    rows = {"chosen_ids": [chosen for chosen, _ in pairs], "rejected_ids": [rejected for _, rejected in pairs]}
    return RewardTrainer(
        model=network,
        args=RewardConfig(output_dir=str(output), **COMMON | ANY_LENGTH | settings),
        train_dataset=Dataset.from_dict(rows),
        processing_class=AutoTokenizer.from_pretrained(model),
        callbacks=list(callbacks),
    )
