"""What the models answer: one engine at a time, rows written as they come."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from rlhf_ray.cluster.connect import Cluster
from rlhf_ray.config.errors import BadInput
from rlhf_ray.config.jobs.evaluate import ComparedModel, EvaluateConfig
from rlhf_ray.config.model import ModelConfig
from rlhf_ray.data.columns import as_given
from rlhf_ray.data.loading import Loaded, read_prompts
from rlhf_ray.data.records import PromptRecord, Sample
from rlhf_ray.data.tokenization import Encoder
from rlhf_ray.evaluation.answers import Answer
from rlhf_ray.evaluation.row_log import RowLogs, key_of
from rlhf_ray.jobs.inference.generate import PROMPTS_AT_ONCE, sampling_of
from rlhf_ray.jobs.inference.rows import RowProgress
from rlhf_ray.models.identity import directory_identity
from rlhf_ray.models.loading import load_tokenizer
from rlhf_ray.rollout.interfaces import PromptBatch
from rlhf_ray.rollout.single_turn import SingleTurn
from rlhf_ray.runs.engines import fixed_pool
from rlhf_ray.runs.model_checks import (
    LONGEST_SAMPLE,
    check_engine,
    check_language_model,
    check_policy,
    check_reward_sources,
    text_lengths,
)

StartCluster = Callable[[], AbstractContextManager[Cluster]]
"""Reserves the groups for one phase."""

Prompts = dict[str, Loaded[PromptRecord]]
"""Each model's prompts, as its own tokenizer reads them."""


def read_all_prompts(config: EvaluateConfig) -> Prompts:
    """Check every model, and read the prompts as each of them does; those that one cannot take are left out for all.

    Raises:
        BadInput: a model that cannot answer, or prompts that cannot be read; names the model.
    """
    found: Prompts = {}
    for name, model in config.models.items():
        try:
            found[name] = read_prompts(config.data, check_model(config, model))
        except BadInput as error:
            raise BadInput(f"models.{name}: {error}") from error
    shared = set.intersection(*({record.prompt_id for record in prompts.rows} for prompts in found.values()))
    if not shared:
        raise BadInput(f"{config.data.path}: no prompt fits all models; raise data.max_prompt_tokens")
    return {
        name: Loaded([row for row in prompts.rows if row.prompt_id in shared], prompts.report, prompts.fingerprint)
        for name, prompts in found.items()
    }


def check_models(config: EvaluateConfig) -> None:
    """Check every model, and every reward source.

    Raises:
        BadInput: names the model, or the source's key, and what to do.
    """
    check_reward_sources(config)
    for name, model in config.models.items():
        try:
            check_model(config, model)
        except BadInput as error:
            raise BadInput(f"models.{name}: {error}") from error


def check_model(config: EvaluateConfig, model: ModelConfig) -> Any:
    """Check that a model can answer, and read what others answered where that is asked for; return its tokenizer.

    Raises:
        BadInput: says why it cannot.
    """
    tokenizer = load_tokenizer(model)
    check_language_model(model, tokenizer)
    check_engine(model, config.rollout, config.longest_sample())
    texts = text_lengths(config)
    if config.reference is not None or texts:
        check_policy(model, tokenizer, {LONGEST_SAMPLE: config.longest_sample()} | texts)
    return tokenizer


def answers_keys(config: EvaluateConfig, prompts: Prompts) -> dict[str, str]:
    """Return, by model, a hash of all that its answers depend on."""
    rollout = config.rollout
    drawn = [rollout.temperature, rollout.max_new_tokens, rollout.stop, config.sampling.model_dump()]
    drawn.append(rollout.skip_special_tokens)
    return {
        name: key_of(
            identity_of(model),
            prompts[name].fingerprint,
            [record.prompt_id for record in prompts[name].rows],
            config.seed,
            config.samples_per_prompt,
            drawn,
        )
        for name, model in config.models.items()
    }


def identity_of(model: ComparedModel) -> list[Any]:
    """Return values that change whenever the model does."""
    return [
        directory_identity(model.path),
        model.tokenizer and directory_identity(model.tokenizer),
        model.chat_template,
        model.dtype,
    ]


def answer_all(
    config: EvaluateConfig,
    logs: RowLogs,
    prompts: Prompts,
    keys: Mapping[str, str],
    start_cluster: StartCluster,
    say: Callable[[str], None],
) -> dict[str, list[Answer]]:
    """Let each model answer what it has not answered yet; all answers, in the order of prompts."""
    return {
        name: _answered(config, logs, name, prompts[name].rows, keys[name], start_cluster, say)
        for name in config.models
    }


def _answered(
    config: EvaluateConfig,
    logs: RowLogs,
    name: str,
    prompts: Sequence[PromptRecord],
    key: str,
    start_cluster: StartCluster,
    say: Callable[[str], None],
) -> list[Answer]:
    file = f"answers/{name}"
    if logs.prepare(file, key):
        say(f"answers of {name}: the model, the prompts or the sampling have changed; answering anew")
    records = {record.prompt_id: record for record in prompts}
    known = _read(logs, file, records)
    wanted = range(config.samples_per_prompt)
    missing = [record for record in prompts if any((record.prompt_id, index) not in known for index in wanted)]
    if missing:
        say(f"{name}: answering {len(missing)} of {len(prompts)} prompts")
        _generate(config, logs, name, missing, start_cluster)
        known = _read(logs, file, records)
    return [known[record.prompt_id, index] for record in prompts for index in wanted]


def _generate(
    config: EvaluateConfig, logs: RowLogs, name: str, prompts: Sequence[PromptRecord], start_cluster: StartCluster
) -> None:
    model = config.models[name]
    turn = SingleTurn(Encoder(load_tokenizer(model)), sampling_of(config))
    rows = logs.open(f"answers/{name}")
    with (
        start_cluster() as cluster,
        fixed_pool(cluster, model, config.rollout, turn, seed=config.seed, max_tokens=config.longest_sample()) as pool,
        RowProgress(f"answers of {name}", len(prompts) * config.samples_per_prompt) as progress,
    ):
        for start in range(0, len(prompts), PROMPTS_AT_ONCE):
            asked = prompts[start : start + PROMPTS_AT_ONCE]
            # One step for all, so that a sample's seed depends on its prompt alone, and not on where a run stopped.
            batch = PromptBatch(
                asked, step=0, version=0, samples_per_prompt=config.samples_per_prompt, seed=config.seed
            )
            with pool.run(batch) as groups:
                for group in groups:
                    for sample in group:
                        rows.append(_row(sample))
                    progress.advance(len(group))
    rows.close()


def _row(sample: Sample) -> dict[str, Any]:
    return {
        "prompt_id": sample.prompt_id,
        "index": sample.index,
        "prompt": sample.prompt,
        "completion": as_given(sample.prompt, sample.response),
        "finish_reason": sample.finish_reason,
        "response_ids": sample.response_ids.tolist(),
    }


def _read(logs: RowLogs, file: str, records: Mapping[str, PromptRecord]) -> dict[tuple[str, int], Answer]:
    found = {}
    for row in logs.read(file):
        record = records.get(row["prompt_id"])
        if record is not None:
            completion = row["completion"]
            text = completion if isinstance(completion, str) else completion[0]["content"]
            answer = Answer(
                row["prompt_id"], row["index"], record.prompt, text, row["response_ids"], row["finish_reason"]
            )
            found[answer.prompt_id, answer.index] = answer
    return found
