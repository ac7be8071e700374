"""Steps of `rlhf reward` and `rlhf dpo` against TRL's trainers, and against the floor: bare passes of the same tokens.

    python -m benchmarks.preferences

The product runs as the job itself, with its driver, actor and DeepSpeed. All contenders take turns after each step:
the same model of 3.7M parameters in float32, the same 16 pairs in the same order, both cores. Fixed lengths are 44
tokens of prompt and 130 of each answer; natural ones are log-normal with mean 96 and cap 512 for each text. A step
lasts from one batch to the next, logging included. DPO's reference is computed once, and its time shared over three
passes over the data. Prints JSON; a ratio is that of the medians.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import ray

from benchmarks.memory import actors_mib, peak_mib
from benchmarks.peer_process import ANSWER_SECONDS, PeerProcess
from benchmarks.preference_floor import REFERENCE_EPOCHS, BarePairs
from benchmarks.preference_workload import KINDS, PreferenceWorkload
from rlhf_ray.cluster.worker_environment import worker_environment
from rlhf_ray.config.jobs.dpo import DPOConfig
from rlhf_ray.config.jobs.supervised import RewardTrainingConfig
from rlhf_ray.jobs.supervised import dpo, reward
from rlhf_ray.jobs.supervised.loop import SupervisedTask, TrainingBatch

JOBS = ("reward", "dpo")
CORES = 2
AIMS = {("reward", "fixed"): 1.0, ("reward", "natural"): 1.5, ("dpo", "fixed"): 1.4, ("dpo", "natural"): 2.0}


class Peer:
    """TRL in a process of its own."""

    def __init__(self, workload: PreferenceWorkload, job: str, kind: str, output: Path, pairs: int) -> None:
        place = output / f"trl_{job}_{kind}"
        self._process = PeerProcess(
            "benchmarks.preference_trl",
            (workload.folder, job, kind, place, pairs, CORES),
            place.with_name(f"{place.name}.log"),
            {"OMP_NUM_THREADS": str(CORES), "TOKENIZERS_PARALLELISM": "false"},
        )
        self.mib = 0.0
        self._process.answer()

    def step(self) -> dict[str, float]:
        answer = self._process.ask("step")
        self.mib = answer["mib"]
        return {"step": answer["seconds"]}

    def close(self) -> None:
        self._process.close()


class InTurns:
    """A task whose steps are timed from batch to batch, with the other contenders' turns between them."""

    def __init__(self, others: Callable[[int], dict[str, dict[str, float]]], steps: int) -> None:
        self._others, self._steps = others, steps
        self._started = 0.0
        self._taken = -1
        self.reference = 0.0
        """Seconds of DPO's first look at all rows."""
        self.rows: list[dict[str, dict[str, float]]] = []
        self.trainer_mib = 0.0

    def wrap(self, task: SupervisedTask[Any]) -> SupervisedTask[Any]:
        make_batch, read = task.batch, task.begin

        def batch(rows: Sequence[Any]) -> TrainingBatch:
            self._end_of_step()
            self._started = time.perf_counter()
            return make_batch(rows)

        def begin(*arguments: Any) -> None:
            began = time.perf_counter()
            read(*arguments)
            self.reference = time.perf_counter() - began

        def finish(*_: Any) -> None:
            self._end_of_step()

        vars(task).update(batch=batch, begin=begin, finish=finish)
        return task

    def _end_of_step(self) -> None:
        seconds = time.perf_counter() - self._started
        self._taken += 1
        if self._taken == 0:
            return
        share = self.reference / self._steps / REFERENCE_EPOCHS
        mine = {"step": seconds + share, "training": seconds, "reference": share}
        self.trainer_mib = max(self.trainer_mib, sum(actors_mib("TrainerActor")))
        self.rows.append({"rlhf_ray": mine, **self._others(self._taken - 1)})
        print(f"  {_line(self.rows[-1])}", file=sys.stderr, flush=True)


def measure(job: str, kind: str, workload: PreferenceWorkload, output: Path, options: argparse.Namespace) -> dict:
    """Run a job over one kind of lengths, the others between its steps."""
    pairs = options.pairs
    lengths = workload.lengths(kind)
    floor = _remote(BarePairs).remote(workload, job, CORES, options.floor_tokens)
    ray.get(floor.__ray_ready__.remote(), timeout=ANSWER_SECONDS)
    peer = Peer(workload, job, kind, output, pairs) if options.against == "both" else None

    def others(step: int) -> dict[str, dict[str, float]]:
        found = {"trl": peer.step()} if peer else {}
        rows = lengths[step * pairs : (step + 1) * pairs]
        return found | {"floor": ray.get(floor.seconds.remote(rows), timeout=ANSWER_SECONDS)}

    turns = InTurns(others, options.warm_up + options.repeats)
    module: Any = reward if job == "reward" else dpo
    try:
        # The job talks to its user; standard output is for the figures.
        with _learning(module, turns), redirect_stdout(sys.stderr):
            module.run(_config(job, kind, workload, output, options))
    finally:
        ray.kill(floor)
        if peer:
            peer.close()
    memory = {"trainer": turns.trainer_mib, "driver": peak_mib(os.getpid()), "trl": peer.mib if peer else 0.0}
    return summary(job, kind, turns, memory, options)


@contextmanager
def _learning(module: Any, turns: InTurns) -> Iterator[None]:
    """Let a job's loop run with turns."""
    learn = module.learn
    module.learn = lambda config, task: learn(config, turns.wrap(task))
    try:
        yield
    finally:
        module.learn = learn


def _config(job: str, kind: str, workload: PreferenceWorkload, output: Path, options: argparse.Namespace) -> Any:
    model = workload.reward if job == "reward" else workload.policy
    settings: dict[str, Any] = {
        "output": str(output / f"{job}_{kind}"),
        "model": {"path": str(model), "dtype": "float32"},
        "data": {"path": str(workload.data(kind)), "shuffle": False},
        "batch_size": options.pairs,
        "tokens_per_microbatch": options.tokens_per_microbatch,
        "trainer": {"learning_rate": 1e-6, "threads": options.threads, "workers": options.workers},
        "groups": {"main": {"cpus_per_node": CORES}},
        "checkpoint": {"every_steps": 0},
        "tracking": {"wandb": "off", "tensorboard": False},
    }
    if job == "reward":
        return RewardTrainingConfig.model_validate(settings)
    return DPOConfig.model_validate(settings | {"reference_cache": None})


def summary(
    job: str, kind: str, turns: InTurns, memory: dict[str, float], options: argparse.Namespace
) -> dict[str, Any]:
    """Return ratios of medians after warm-up, and what they come from."""
    repeats = turns.rows[options.warm_up :]
    seconds = {
        name: {part: round(statistics.median(row[name][part] for row in repeats), 3) for part in repeats[0][name]}
        for name in repeats[0]
    }
    ours = seconds["rlhf_ray"]["step"]
    ratios = {"share_of_floor": round(seconds["floor"]["step"] / ours, 3)}
    if "trl" in seconds:
        ratios["speed_against_trl"] = round(seconds["trl"]["step"] / ours, 3)
        ratios["memory_against_trl"] = round(memory["trainer"] / memory["trl"], 3)
    return {
        **ratios,
        "aim": AIMS[job, kind],
        "seconds": seconds,
        "steps": {name: [round(row[name]["step"], 3) for row in repeats] for name in repeats[0]},
        "peak_mib": {name: round(value) for name, value in memory.items()},
    }


def _remote(actor_class: type) -> Any:
    variables = worker_environment([], threads=CORES, one_node=True)
    return ray.remote(actor_class).options(num_cpus=0, runtime_env={"env_vars": variables})


def _line(row: dict[str, dict[str, float]]) -> str:
    return "; ".join(f"{name} " + " ".join(f"{p} {s:.3f}" for p, s in parts.items()) for name, parts in row.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=list(JOBS))
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--pairs", type=int, default=16, help="of a step")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--warm-up", type=int, default=2)
    parser.add_argument("--tokens-per-microbatch", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=CORES, help="of the trainer")
    parser.add_argument("--workers", type=int, default=1, help="data-parallel ranks of the trainer")
    parser.add_argument("--floor-tokens", type=int, default=1024, help="tokens of a batch of the floor")
    parser.add_argument("--against", choices=["both", "floor"], default="both")
    options = parser.parse_args()
    before = os.getloadavg()[0]
    found: dict[str, Any] = {}
    ray.init(address="local", num_cpus=CORES, include_dashboard=False, log_to_driver=False)
    try:
        with tempfile.TemporaryDirectory() as name:
            steps = options.warm_up + options.repeats
            workload = PreferenceWorkload.make(Path(name) / "workload", options.pairs * steps)
            for job in options.jobs:
                for kind in options.kinds:
                    print(f"{job}, {kind}", file=sys.stderr, flush=True)
                    found[f"{job} {kind}"] = measure(job, kind, workload, Path(name), options)
    finally:
        ray.shutdown()
    loads = {"before": before, "after": os.getloadavg()[0]}
    print(json.dumps(found | {"load_average": loads, "options": vars(options)}, indent=2, default=str))


if __name__ == "__main__":
    main()
