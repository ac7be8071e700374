"""Steps of a policy-gradient job, and of other contenders after each of them: what `ppo` and `grpo` share.

The product runs through its own driver, roles and loop. All contenders live through the whole run and take turns: the
same models, the same prompts, each response as long as the schedule says.
"""

import argparse
import asyncio
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray

from benchmarks.bare_vllm import BareEngine
from benchmarks.memory import actors_mib, peak_mib
from benchmarks.peer_process import ANSWER_SECONDS, PeerProcess
from benchmarks.ppo_floor import BarePasses
from benchmarks.ppo_workload import PROMPT_TOKENS, Workload
from rlhf_ray.checkpoint.checkpoints import Checkpoints
from rlhf_ray.cluster.connect import Cluster, connect
from rlhf_ray.cluster.worker_environment import worker_environment
from rlhf_ray.config.jobs.ppo import PPOConfig
from rlhf_ray.data.cursor import Cursor
from rlhf_ray.data.loading import read_prompts
from rlhf_ray.data.records import Sample
from rlhf_ray.data.tokenization import Encoder
from rlhf_ray.jobs.ppo.start import start_roles
from rlhf_ray.jobs.ppo.state import PPOState, kl_controller
from rlhf_ray.jobs.ppo.step import PPODriver
from rlhf_ray.models.loading import load_tokenizer
from rlhf_ray.rollout.interfaces import Generate, RolloutTask
from rlhf_ray.rollout.pool import RolloutPool
from rlhf_ray.rollout.remote import RemoteEngine
from rlhf_ray.rollout.requests import GenerationRequest
from rlhf_ray.rollout.single_turn import Sampling, SingleTurn
from rlhf_ray.runs.folder import RunFolder
from rlhf_ray.schedule import Loop, Schedule
from rlhf_ray.tracking.timings import Timings
from rlhf_ray.tracking.tracker import Tracker

CORES = 2
KINDS = ("natural", "fixed")

Turn = Callable[[str], dict[str, float]]
"""A contender's step at a kind of lengths: seconds by part, `step` all of them."""
Rows = dict[str, list[dict[str, dict[str, float]]]]
"""Seconds by kind of lengths, repeat, contender and part."""


class ScheduledLengths(SingleTurn):
    """Each response to a prompt has as many tokens as the schedule says, whatever they are."""

    def __init__(self, tokenizer: Any, workload: Workload) -> None:
        super().__init__(Encoder(tokenizer), Sampling(max_tokens=workload.longest, ignore_eos=True))
        self._lengths = workload.lengths
        self.kind = KINDS[0]

    async def __call__(self, generate: Generate, task: RolloutTask) -> list[Sample]:
        found = await asyncio.gather(*(super(ScheduledLengths, self).__call__(generate, one) for one in split(task)))
        return [replace(sample, index=number) for number, [sample] in enumerate(found)]

    def request(self, task: RolloutTask) -> GenerationRequest:
        # Prompts are named by their row in the file, and the parts of a task by their number.
        row, number, group = int(task.prompt.prompt_id), *map(int, task.request_id.split("/")[-2:])
        return replace(super().request(task), max_tokens=self._lengths[self.kind][row * group + number])


def split(task: RolloutTask) -> list[RolloutTask]:
    """Make a task for each response: an engine gives all responses to a request the same limit."""
    return [
        replace(task, samples=1, request_id=f"{task.request_id}/{number}/{task.samples}", seed=task.seed + number)
        for number in range(task.samples)
    ]


class StoppableClock:
    """Stands still while the other contenders have their turns."""

    def __init__(self) -> None:
        self._stopped = 0.0

    def __call__(self) -> float:
        return time.perf_counter() - self._stopped

    @contextmanager
    def stopped(self) -> Iterator[None]:
        since = time.perf_counter()
        yield
        self._stopped += time.perf_counter() - since


class InTurns(PPODriver):
    """The driver, with a pause after each step for the others."""

    between: Callable[[dict[str, float], int], None]
    clock: StoppableClock

    def log(self, done: int, metrics: Mapping[str, float], seconds: Mapping[str, float]) -> None:
        super().log(done, metrics, seconds)
        with self.clock.stopped():
            self.between(dict(seconds), len(self._shown))


class Peer:
    """TRL in a process of its own."""

    def __init__(
        self, module: str, workload: Workload, output: Path, arguments: Sequence[object], variables: Mapping[str, str]
    ) -> None:
        """Start `python -m MODULE WORKLOAD OUTPUT ARGUMENTS... CORES`; `variables` are added to the environment."""
        threads = {"OMP_NUM_THREADS": str(CORES), "TOKENIZERS_PARALLELISM": "false"}
        self._process = PeerProcess(
            module, (workload.folder, output, *arguments, CORES), output / "trl.log", {**threads, **variables}
        )
        self._written = {kind: sum(lengths) for kind, lengths in workload.lengths.items()}
        self.mib = 0.0

    def ready(self) -> None:
        self._process.answer()

    def step(self, kind: str) -> dict[str, float]:
        answer = self._process.ask(kind)
        if answer["tokens"] != self._written[kind]:
            raise RuntimeError(f"TRL wrote {answer['tokens']} tokens where {self._written[kind]} were scheduled")
        self.mib = answer["mib"]
        return {"step": answer["seconds"]}

    def close(self) -> None:
        self._process.close()


class Floor:
    """Two processes, each with both cores, one after the other."""

    def __init__(self, workload: Workload, config: PPOConfig, options: argparse.Namespace) -> None:
        self._lengths = workload.lengths
        self._prompts = read_prompts(config.data, load_tokenizer(config.model)).rows
        self._rollout = ScheduledLengths(load_tokenizer(config.model), workload)
        self._epochs, self._group = config.epochs, config.samples_per_prompt
        rollout = config.rollout.model_copy(update={"threads": options.floor_engine_threads})
        self._engine = _remote(BareEngine).remote(config.model, rollout, PROMPT_TOKENS + workload.longest)
        inferences = (config.algorithm.old_logprobs == "trainer") + config.has_kl
        self._passes = _remote(BarePasses).remote(
            workload, bool(config.critics), inferences, CORES, options.floor_tokens
        )

    def ready(self) -> None:
        ready = [self._engine.__ray_ready__.remote(), self._passes.__ray_ready__.remote()]
        ray.get(ready, timeout=ANSWER_SECONDS)

    def step(self, kind: str) -> dict[str, float]:
        self._rollout.kind = kind
        tasks = [RolloutTask(prompt, self._group, prompt.prompt_id, prompt.prompt_id, 0) for prompt in self._prompts]
        requests = [self._rollout.request(one) for task in tasks for one in split(task)]
        generation = ray.get(self._engine.seconds.remote(requests), timeout=ANSWER_SECONDS)
        passes = ray.get(self._passes.seconds.remote(self._lengths[kind], self._epochs), timeout=ANSWER_SECONDS)
        parts = {"generation": generation, **passes}
        return parts | {"step": sum(parts.values())}


def run(
    config: PPOConfig, workload: Workload, options: argparse.Namespace, start_peer: Callable[[], Peer]
) -> tuple[Rows, dict[str, float]]:
    """Take the steps in turns; returns their seconds, and peak memory in MiB by process."""
    tokenizer = load_tokenizer(config.model)
    prompts = read_prompts(config.data, tokenizer)
    folder = RunFolder.open(config)
    rows: Rows = {kind: [] for kind in KINDS}
    memory: dict[str, float] = {}
    with ExitStack() as stack:
        tracker = stack.enter_context(Tracker.open(folder.path, config.tracking, {}, total_steps=config.steps))
        cluster: Cluster = stack.enter_context(connect(config.cluster, config.groups))
        roles = stack.enter_context(start_roles(config, cluster))
        scheduled = ScheduledLengths(tokenizer, workload)
        engines = [RemoteEngine(handle, number) for number, handle in enumerate(roles.engines.handles)]
        roles.pool = stack.enter_context(
            RolloutPool(engines, scheduled, deadline_seconds=config.cluster.deadlines.call_seconds)
        )
        roles.source = roles.pool
        others: dict[str, Turn] = {}
        peer = None
        if options.against in ("both", "trl"):
            peer = start_peer()
            stack.callback(peer.close)
            peer.ready()
            others["trl"] = peer.step
        if options.against in ("both", "floor"):
            floor = Floor(workload, config, options)
            floor.ready()
            others["floor"] = floor.step

        def between(seconds: dict[str, float], samples: int) -> None:
            kind = scheduled.kind
            if samples != len(workload.lengths[kind]):
                raise RuntimeError(f"the step had {samples} samples, not {len(workload.lengths[kind])}")
            rows[kind].append({"rlhf_ray": seconds, **{name: turn(kind) for name, turn in others.items()}})
            print(f"{kind}: {_line(rows[kind][-1])}", file=sys.stderr, flush=True)
            memory.update(_memory(peer))
            scheduled.kind = next_kind({kind: len(steps) for kind, steps in rows.items()}, config.steps)

        records = {record.prompt_id: record for record in prompts.rows}
        cursor = Cursor(list(records), config.seed, config.data.shuffle, prompts.fingerprint)
        checkpoints = Checkpoints(str(folder.checkpoints), config.checkpoint.keep)
        state = PPOState(cursor, kl_controller(config.algorithm.kl))
        driver = InTurns(config, roles, records, [], tracker, checkpoints, state)
        driver.between, driver.clock = between, StoppableClock()
        Loop(driver, Schedule(config.steps, config.prompts_per_step), timings=Timings(driver.clock)).run()
    return rows, memory


def next_kind(done: Mapping[str, int], steps: int) -> str:
    """Return the kind of lengths of the next step: all steps of one kind, then all of the other.

    In turns, a contender would rest through the others' steps of natural lengths before each step of fixed ones, the
    first of them longest, and what has rested begins slowly: the system may have taken its memory.
    """
    return next((kind for kind in KINDS if done[kind] < steps // len(KINDS)), KINDS[-1])


def base_config(workload: Workload, output: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Return what both jobs are told of data, batches and placement."""
    role = {"cpus_per_worker": 0.2}
    return {
        "output": str(output / "run"),
        "model": {"path": str(workload.policy), "dtype": "float32"},
        "data": {"path": str(workload.prompts), "max_prompt_tokens": PROMPT_TOKENS},
        "steps": (options.warm_up + options.repeats) * len(KINDS),
        "epochs": options.epochs,
        "minibatches": options.minibatches,
        "tokens_per_microbatch": options.tokens_per_microbatch,
        "algorithm": {"old_logprobs": options.old_logprobs},
        "policy": role | {"learning_rate": 1e-6, "threads": options.threads},
        "rollout": role | {"max_new_tokens": workload.longest, "threads": options.engine_threads},
        "groups": {"main": {"cpus_per_node": CORES}},
        "checkpoint": {"every_steps": 0},
        "tracking": {"wandb": "off", "tensorboard": False},
    }


def summary(rows: Rows, memory: Mapping[str, float], options: argparse.Namespace, load_before: float) -> dict[str, Any]:
    """Return ratios of medians after warm-up, and the parts that they come from."""
    kinds: dict[str, Any] = {}
    for kind in KINDS:
        repeats = rows[kind][options.warm_up :]
        medians = {
            name: {part: statistics.median(row[name][part] for row in repeats) for part in repeats[0][name]}
            for name in repeats[0]
        }
        ours = medians["rlhf_ray"]["step"]
        ratios = {}
        if "trl" in medians:
            ratios["speed_against_trl"] = round(medians["trl"]["step"] / ours, 3)
        if "floor" in medians:
            ratios["share_of_floor"] = round(medians["floor"]["step"] / ours, 3)
        kinds[kind] = {
            **ratios,
            "samples_per_second": {name: round(options.samples / parts["step"], 2) for name, parts in medians.items()},
            "seconds": {name: {part: round(s, 3) for part, s in parts.items()} for name, parts in medians.items()},
            "steps": {name: [round(row[name]["step"], 2) for row in repeats] for name in repeats[0]},
        }
    found: dict[str, Any] = {"peak_mib": {name: round(value) for name, value in memory.items()}}
    if memory.get("trl"):
        for name in ("largest_trainer", "all_trainers"):
            found[f"memory_of_{name}_against_trl"] = round(memory[name] / memory["trl"], 3)
        everybody = sum(memory[name] for name in ("all_trainers", "engine", "scorer"))
        found["memory_of_all_roles_against_trl"] = round(everybody / memory["trl"], 3)
    loads = {"before": load_before, "after": os.getloadavg()[0]}
    return kinds | found | {"load_average": loads, "options": vars(options)}


def common_options(parser: argparse.ArgumentParser, budget: int, old_logprobs: str) -> None:
    """Add options of both benchmarks; `budget`, tokens in a micro-batch, and `old_logprobs` are defaults."""
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--tokens-per-microbatch", type=int, default=budget)
    parser.add_argument(
        "--old-logprobs",
        choices=["engine", "trainer"],
        default=old_logprobs,
        help="whose log-probabilities are the old ones; with the engine's, the policy makes no pass of inference",
    )
    parser.add_argument("--floor-tokens", type=int, default=1024, help="tokens of a batch of the floor's passes")
    parser.add_argument("--floor-engine-threads", type=int, default=CORES)
    parser.add_argument("--warm-up", type=int, default=2)
    parser.add_argument("--against", choices=["both", "trl", "floor", "nobody"], default="both")
    parser.add_argument("--models", type=Path, help="keep models and prompts here, and take them from here again")


def _memory(peer: Peer | None) -> dict[str, float]:
    trainers = actors_mib("TrainerActor")
    ours = {
        "largest_trainer": max(trainers),
        "all_trainers": sum(trainers),
        "engine": sum(actors_mib("Engine")),
        "scorer": sum(actors_mib("ScorerActor")),
        "driver": peak_mib(os.getpid()),
    }
    return ours | ({"trl": peer.mib} if peer is not None else {})


def _remote(actor_class: type) -> Any:
    variables = worker_environment([], threads=CORES, one_node=True)
    return ray.remote(actor_class).options(num_cpus=0, runtime_env={"env_vars": variables})


def _line(row: dict[str, dict[str, float]]) -> str:
    return "; ".join(f"{name} " + " ".join(f"{p} {s:.2f}" for p, s in parts.items()) for name, parts in row.items())
