"""The peer of `benchmarks/ppo.py`: TRL's experimental PPO trainer, one step for each line on standard input.

A process of its own, because its TRL is another one than this environment's. Each line names the kind of lengths;
the answer is a line of JSON with the step's seconds and what it worked on.
"""

import sys
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LogitsProcessorList,
)

from benchmarks.ppo_workload import Workload
from benchmarks.trl_turns import ScheduledEnd, Turns, answers_stream


def train(workload: Workload, output: Path, epochs: int, minibatches: int, threads: int, answers: TextIO) -> None:
    """Run the trainer until standard input ends."""
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    torch.set_num_threads(threads)
    tokenizer = AutoTokenizer.from_pretrained(workload.policy, padding_side="left")
    prompts = workload.prompt_ids()
    schedule = ScheduledEnd(prompts, tokenizer.eos_token_id, tokenizer.pad_token_id)
    load = partial(AutoModelForCausalLM.from_pretrained, workload.policy, dtype=torch.float32)
    load_scalar = partial(
        AutoModelForSequenceClassification.from_pretrained, workload.reward, num_labels=1, dtype=torch.float32
    )
    # Any: its `generate` is replaced.
    policy: Any = load()
    policy.generate = partial(policy.generate, logits_processor=LogitsProcessorList([schedule]))
    samples = len(prompts)
    turns = Turns(
        answers,
        begin=lambda line: schedule.schedule(workload.lengths[line]),
        found=lambda: {"tokens": schedule.written},
    )
    arguments = PPOConfig(
        output_dir=str(output / "trl"),
        # One batch is one step's samples, and each minibatch is one optimizer step.
        per_device_train_batch_size=samples,
        gradient_accumulation_steps=1,
        num_mini_batches=minibatches,
        num_ppo_epochs=epochs,
        local_rollout_forward_batch_size=samples,
        total_episodes=samples * 1000,
        response_length=workload.longest,
        stop_token="eos",
        temperature=1.0,
        learning_rate=1e-6,
        kl_coef=0.05,
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        num_sample_generations=0,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = PPOTrainer(
        args=arguments,
        processing_class=tokenizer,
        model=policy,
        ref_model=load(),
        reward_model=load_scalar(),
        value_model=load_scalar(),
        train_dataset=Dataset.from_dict({"input_ids": prompts}),
        # It wants one even where it never evaluates.
        eval_dataset=Dataset.from_dict({"input_ids": prompts}),
        callbacks=[turns],
    )
    trainer.train()


def main() -> None:
    folder, output, epochs, minibatches, threads = sys.argv[1:]
    train(Workload(Path(folder)), Path(output), int(epochs), int(minibatches), int(threads), answers_stream())


if __name__ == "__main__":
    main()
