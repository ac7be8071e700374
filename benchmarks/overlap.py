"""Steps of PPO with the next batch written while the policy learns, against the same steps in turns.

One engine on one core and one trainer on the other, started once; loops of both schedules take turns on them, with the
same prompts, each response as long as the schedule of lengths says. Of each loop the first and the last step do not
count: in the first nothing was written ahead, and beside the last nothing is.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.policy_steps import ScheduledLengths
from benchmarks.ppo_workload import PROMPT_TOKENS, Responses, Workload
from rlhf_ray.checkpoint.checkpoints import Checkpoints
from rlhf_ray.cluster.connect import connect
from rlhf_ray.config.jobs.ppo import PPOConfig
from rlhf_ray.data.cursor import Cursor
from rlhf_ray.data.loading import read_prompts
from rlhf_ray.jobs.ppo.start import start_roles
from rlhf_ray.jobs.ppo.state import PPOState, kl_controller
from rlhf_ray.jobs.ppo.step import PPODriver
from rlhf_ray.models.loading import load_tokenizer
from rlhf_ray.rollout.pool import RolloutPool
from rlhf_ray.rollout.remote import RemoteEngine
from rlhf_ray.runs.folder import RunFolder
from rlhf_ray.schedule import Loop, RunProgress, Schedule
from rlhf_ray.tracking.tracker import Tracker

MEAN_RESPONSE, LONGEST_RESPONSE, GROUP = 64, 256, 4
TRACKS = {"engine": ("generate",), "trainer": ("score", "train", "sync", "idle")}
"""Parts of a step in turns that each device would work in, were it never to wait."""

REWARD = """
def length(prompts, completions, **columns):
    return [float(len(text)) for text in completions]
"""


class Measured(PPODriver):
    """The driver, which keeps the seconds of its steps and writes no checkpoint."""

    steps: list[dict[str, float]]

    def log(self, done: int, metrics: Mapping[str, float], seconds: Mapping[str, float]) -> None:
        super().log(done, metrics, seconds)
        tokens = sum(len(sample.response_ids) for sample in self._shown)
        self.steps.append({**seconds, "tokens": tokens, "staleness": metrics["staleness/mean"]})

    def checkpoint(self, done: int, *, evaluated: bool) -> None:
        """Save nothing: the steps are measured."""


def config_of(workload: Workload, folder: Path, options: argparse.Namespace) -> PPOConfig:
    (folder / "reward.py").write_text(REWARD)
    role = {"cpus_per_worker": 0.5, "threads": 1}
    return PPOConfig.model_validate(
        {
            "output": str(folder / "run"),
            "model": {"path": str(workload.policy), "dtype": "float32"},
            "data": {"path": str(workload.prompts), "max_prompt_tokens": PROMPT_TOKENS},
            "steps": 1_000_000,
            "prompts_per_step": options.prompts,
            "samples_per_prompt": GROUP,
            "minibatches": options.minibatches,
            "epochs": options.epochs,
            "tokens_per_microbatch": 2048,
            "algorithm": {"advantages": "rloo", "kl": {"coefficient": 0}, "max_staleness": max(options.staleness)},
            "policy": role | {"learning_rate": 1e-6},
            "rewards": [{"kind": "function", "function": f"{folder}/reward.py:length", "cpus_per_worker": 0.1}],
            "rollout": role | {"max_new_tokens": workload.longest},
            "groups": {"main": {"cpus_per_node": 2}},
            "checkpoint": {"every_steps": 0},
            "tracking": {"wandb": "off", "tensorboard": False, "samples_per_step": 0},
        }
    )


def measure(config: PPOConfig, workload: Workload, options: argparse.Namespace) -> dict[int, list[dict[str, float]]]:
    """Measure the seconds of the steps that count, by staleness."""
    tokenizer = load_tokenizer(config.model)
    prompts = read_prompts(config.data, tokenizer)
    records = {record.prompt_id: record for record in prompts.rows}
    folder = RunFolder.open(config)
    found: dict[int, list[dict[str, float]]] = {staleness: [] for staleness in options.staleness}
    with ExitStack() as stack:
        tracker = stack.enter_context(Tracker.open(folder.path, config.tracking, {}, total_steps=config.steps))
        cluster = stack.enter_context(connect(config.cluster, config.groups))
        roles = stack.enter_context(start_roles(config, cluster))
        engines = [RemoteEngine(handle, number) for number, handle in enumerate(roles.engines.handles)]
        scheduled = ScheduledLengths(tokenizer, workload)
        seconds = config.cluster.deadlines.call_seconds
        roles.pool = stack.enter_context(RolloutPool(engines, scheduled, deadline_seconds=seconds))
        roles.source, roles.memory = roles.pool, None
        cursor = Cursor(list(records), config.seed, config.data.shuffle, prompts.fingerprint)
        state = PPOState(cursor, kl_controller(config.algorithm.kl))
        driver = Measured(config, roles, records, [], tracker, Checkpoints(str(folder.checkpoints), 1), state)
        done = 0
        for repeat in range(options.warm_up + options.repeats):
            for staleness in options.staleness:
                driver.steps = []
                plan = Schedule(done + options.steps, config.prompts_per_step, staleness)
                done = Loop(driver, plan, RunProgress(done, done)).run()
                counted = driver.steps[1:-1]
                print(
                    f"k={staleness} " + " ".join(f"{step['step']:.2f}" for step in counted), file=sys.stderr, flush=True
                )
                if repeat >= options.warm_up:
                    found[staleness] += counted
    return found


def summary(found: Mapping[int, list[dict[str, float]]], options: argparse.Namespace) -> dict[str, Any]:
    """Compare speeds with the steps in turns, and a step with its longest track."""
    medians = {
        staleness: {part: statistics.median(step[part] for step in steps) for part in steps[0]}
        for staleness, steps in found.items()
    }
    turns = medians[0]
    tracks = {track: sum(turns[part] for part in parts) for track, parts in TRACKS.items()}
    return {
        "speed_against_turns": {k: round(turns["step"] / one["step"], 3) for k, one in medians.items() if k},
        "step_against_longest_track": {
            k: round(one["step"] / max(tracks.values()), 3) for k, one in medians.items() if k
        },
        "training_against_generation": round(tracks["trainer"] / tracks["engine"], 3),
        "seconds": {k: {part: round(value, 3) for part, value in one.items()} for k, one in medians.items()},
        "load_average": os.getloadavg()[0],
        "options": vars(options),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--staleness", type=int, nargs="+", default=[0, 1, 2], help="0 must be one of them")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--minibatches", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--steps", type=int, default=6, help="of each loop; two of them do not count")
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--warm-up", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        responses = Responses(options.prompts, MEAN_RESPONSE, LONGEST_RESPONSE, GROUP)
        workload = Workload.make(folder / "models", responses)
        found = measure(config_of(workload, folder, options), workload, options)
    print(json.dumps(summary(found, options), indent=2, default=str))


if __name__ == "__main__":
    main()
