"""`rlhf generate`: answers of a model to the prompts of a data set."""

import time
from collections.abc import Collection as Container
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

from rlhf_ray.cluster.connect import Cluster, connect
from rlhf_ray.config.jobs.evaluate import EvaluateConfig
from rlhf_ray.config.jobs.inference import GenerateConfig
from rlhf_ray.data.columns import as_given
from rlhf_ray.data.file_formats import Row
from rlhf_ray.data.loading import read_prompts
from rlhf_ray.data.records import PromptRecord, Sample
from rlhf_ray.data.row_files import set_apart
from rlhf_ray.data.tokenization import Encoder
from rlhf_ray.jobs.inference.rows import RowProgress, row_output
from rlhf_ray.jobs.inference.safety import SAFETY_COLUMNS, SafetyFilter, check_safety
from rlhf_ray.jobs.inference.score import TOKENS_PER_MICROBATCH
from rlhf_ray.roles.scorer import RewardSources
from rlhf_ray.rollout.collection import Collection
from rlhf_ray.rollout.interfaces import PromptBatch
from rlhf_ray.rollout.pool import RolloutPool
from rlhf_ray.rollout.single_turn import Sampling, SingleTurn
from rlhf_ray.runs.engines import fixed_pool
from rlhf_ray.runs.model_checks import check_engine, check_language_model, job_tokenizer
from rlhf_ray.runs.recovery import RESTARTS
from rlhf_ray.tracking.terminal import say

PROMPTS_AT_ONCE = 8192
"""Prompts in the engines' queues at a time: they are always full, and a data set of millions stays outside."""


def run(config: GenerateConfig) -> None:
    """Write `samples_per_prompt` rows for each prompt, in prompt order; the file appears when all are there.

    Raises:
        RlhfError: with what is wrong and what to do.
    """
    tokenizer = check_models(config)
    prompts = read_prompts(config.data, tokenizer)
    added = {"completion": str, "prompt_id": str, "index": int, "finish_reason": str, "seed": int}
    if config.safety is not None:
        added |= SAFETY_COLUMNS
    taken = ("prompt", *added)
    known = [{"prompt": record.prompt, **set_apart(record.columns, taken)} for record in prompts.rows]
    if any(not isinstance(record.prompt, str) for record in prompts.rows):
        # The form of completions is that of their prompts.
        known = [row | {"completion": as_given(row["prompt"], "")} for row in known]
        del added["completion"]
    began, tally = time.monotonic(), _Tally()
    turn = SingleTurn(Encoder(tokenizer), sampling_of(config))
    with (
        row_output(config.output, known, added) as file,
        connect(config.cluster, config.groups, say, config.environment) as cluster,
        fixed_pool(
            cluster, config.model, config.rollout, turn, seed=config.seed, max_tokens=config.longest_sample()
        ) as pool,
        RowProgress("generating", len(known) * config.samples_per_prompt) as progress,
    ):
        for line in prompts.report.lines():
            progress.message(line)
        groups = ordered_groups(config, pool, prompts.rows, progress)
        safety = _safety_filter(config, cluster, pool, prompts.rows)
        if safety is None:
            for sample in chain.from_iterable(groups):
                file.write(_row(sample, taken))
                tally.count(sample)
        else:
            for answer in chain.from_iterable(safety.guard(groups, PROMPTS_AT_ONCE)):
                file.write(_row(answer.sample, taken) | answer.columns())
                tally.count(answer.sample)
            safety.check_all()
            for line in safety.lines():
                progress.message(line)
    print(f"{config.output}: {tally.line(len(prompts.rows), time.monotonic() - began)}")


def _row(sample: Sample, taken: Container[str]) -> Row:
    return {
        "prompt": sample.prompt,
        "completion": as_given(sample.prompt, sample.response),
        **set_apart(sample.columns, taken),
        "prompt_id": sample.prompt_id,
        "index": sample.index,
        "finish_reason": sample.finish_reason,
        "seed": sample.seed,
    }


def sampling_of(config: GenerateConfig | EvaluateConfig) -> Sampling:
    """Return how answers are drawn: unlike in training, from a part of the distribution if the config says so."""
    rollout, sampling = config.rollout, config.sampling
    return Sampling(
        max_tokens=rollout.max_new_tokens,
        # The engine's word for taking the most likely token.
        temperature=0.0 if sampling.greedy else rollout.temperature,
        stop=tuple(rollout.stop),
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        skip_special_tokens=rollout.skip_special_tokens,
    )


def _safety_filter(
    config: GenerateConfig, cluster: Cluster, pool: RolloutPool, prompts: Sequence[PromptRecord]
) -> SafetyFilter | None:
    if config.safety is None:
        return None
    # What it measures is a cost by its place: the threshold is in the model's own unit.
    cost = config.safety.cost.model_copy(update={"measures": "cost"})
    sources = RewardSources(cluster, [cost], TOKENS_PER_MICROBATCH, max_restarts=RESTARTS)
    sources.ready()
    by_id = {record.prompt_id: record for record in prompts}

    def draw_again(ids: Sequence[str], count: int, number: int) -> Iterator[list[Sample]]:
        # The number of the round in the place of a step's gives other seeds.
        asked = [by_id[prompt_id] for prompt_id in ids]
        yield from pool.run(PromptBatch(asked, step=number, version=0, samples_per_prompt=count, seed=config.seed))

    return SafetyFilter(config.safety, sources, draw_again)


def ordered_groups(
    config: GenerateConfig, pool: RolloutPool, prompts: Sequence[PromptRecord], progress: RowProgress
) -> Iterator[list[Sample]]:
    """Yield groups in the order of the prompts, each as soon as all before it have come."""
    tokens = 0
    for start in range(0, len(prompts), PROMPTS_AT_ONCE):
        asked = prompts[start : start + PROMPTS_AT_ONCE]
        # One step for all, so that a sample's seed depends on its prompt alone.
        batch = PromptBatch(asked, step=0, version=0, samples_per_prompt=config.samples_per_prompt, seed=config.seed)
        with pool.run(batch) as collection:
            yield from _in_order(collection, asked, progress, tokens)
        tokens += collection.progress.tokens


def _in_order(
    collection: Collection, asked: Sequence[PromptRecord], progress: RowProgress, tokens_before: int
) -> Iterator[list[Sample]]:
    waiting: dict[str, list[Sample]] = {}
    following = iter(asked)
    due = next(following)
    for group in collection:
        progress.advance(len(group), tokens_before + collection.progress.tokens)
        waiting[group[0].prompt_id] = group
        while due.prompt_id in waiting:
            yield waiting.pop(due.prompt_id)
            due = next(following, due)


def check_models(config: GenerateConfig) -> Any:
    """Check that the model can write, and the cost model judge; return the model's tokenizer.

    Raises:
        BadInput: names the key and what to do.
    """
    tokenizer = job_tokenizer(config.model)
    check_language_model(config.model, tokenizer)
    check_engine(config.model, config.rollout, config.longest_sample())
    check_safety(config)
    return tokenizer


class _Tally:
    """Counts of what came out, for the last line."""

    def __init__(self) -> None:
        self._samples = self._tokens = self._cut = 0

    def count(self, sample: Sample) -> None:
        self._samples += 1
        self._tokens += len(sample.response_ids)
        self._cut += sample.finish_reason == "length"

    def line(self, prompts: int, seconds: float) -> str:
        cut = f"; {self._cut} were cut at rollout.max_new_tokens" if self._cut else ""
        return f"{self._samples} completions of {prompts} prompts, {self._tokens} tokens, {seconds:.0f} s{cut}"
