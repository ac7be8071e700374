"""The peer of `benchmarks/grpo.py`: TRL's GRPOTrainer, one batch of samples for each line on standard input.

A process of its own, with both cores. Each line names the kind of lengths; the answer is a line of JSON with the step's
seconds, its tokens, and the process's peak memory.
"""

import sys
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, LogitsProcessorList

from benchmarks.grpo_reward import share_of_vowels
from benchmarks.ppo_workload import Workload
from benchmarks.reward_trl import COMMON
from benchmarks.trl_turns import ScheduledEnd, Turns, answers_stream


def train(
    workload: Workload, output: Path, epochs: int, minibatches: int, kl: float, threads: int, answers: TextIO
) -> None:
    """Run the trainer until standard input ends."""
    from trl import GRPOConfig, GRPOTrainer

    torch.set_num_threads(threads)
    tokenizer = AutoTokenizer.from_pretrained(workload.policy, padding_side="left")
    prompts = workload.prompt_texts()
    schedule = ScheduledEnd(workload.prompt_ids(), tokenizer.eos_token_id, tokenizer.pad_token_id)
    # Any: its `generate` is replaced.
    policy: Any = AutoModelForCausalLM.from_pretrained(workload.policy, dtype=torch.float32)
    policy.generate = partial(policy.generate, logits_processor=LogitsProcessorList([schedule]))
    samples = len(workload.lengths["fixed"])
    turns = Turns(
        answers,
        begin=lambda line: schedule.schedule(workload.lengths[line]),
        found=lambda: {"tokens": schedule.written},
        optimizer_steps=epochs * minibatches,
    )
    settings = COMMON | {
        "learning_rate": 1e-6,
        # Each minibatch is one pass and one optimizer step; a batch of samples is written for all of them.
        "per_device_train_batch_size": samples // minibatches,
        "steps_per_generation": minibatches,
        "num_iterations": epochs,
        "num_generations": samples // len(prompts),
        "max_completion_length": workload.longest,
        "beta": kl,
        "loss_type": "grpo",
        "temperature": 1.0,
        "shuffle_dataset": False,
        "max_steps": 1_000_000,
    }
    trainer = GRPOTrainer(
        model=policy,
        # TRL declares a list that may hold None, which a list of floats is not to mypy: lists are invariant.
        reward_funcs=[share_of_vowels],  # type: ignore[list-item]
        args=GRPOConfig(output_dir=str(output / "trl"), **settings),
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        processing_class=tokenizer,
        callbacks=[turns],
    )
    trainer.train()


def main() -> None:
    folder, output, epochs, minibatches, kl, threads = sys.argv[1:]
    numbers = (int(epochs), int(minibatches), float(kl), int(threads))
    train(Workload(Path(folder)), Path(output), *numbers, answers_stream())


if __name__ == "__main__":
    main()
