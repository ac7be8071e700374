"""What the models make of texts: of their own answers and the reference of them (KL), and of held-out texts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlhf_ray.config.errors import BadInput
from rlhf_ray.config.jobs.evaluate import EvaluateConfig
from rlhf_ray.config.training import TrainerConfig
from rlhf_ray.data.batches import TokenBatch
from rlhf_ray.data.loading import Loaded, read_supervised
from rlhf_ray.data.records import PromptRecord
from rlhf_ray.data.rows import SupervisedRow, supervised_batch
from rlhf_ray.evaluation.answers import Answer, TextFit
from rlhf_ray.evaluation.row_log import RowLogs, key_of
from rlhf_ray.jobs.evaluate.answers import StartCluster, identity_of
from rlhf_ray.jobs.inference.rows import RowProgress
from rlhf_ray.models.loading import load_tokenizer
from rlhf_ray.roles.trainer import SharedBatch, TrainerGroup

ROWS_AT_ONCE = 256
"""Rows of one call: enough that sorting by length leaves little padding, few enough to lose at a kill."""

HeldOutTexts = dict[str, Loaded[SupervisedRow]]
"""Held-out texts, as each model's tokenizer reads them."""


@dataclass(frozen=True, slots=True)
class _Work:
    """Rows whose log-probabilities one model computes into one file."""

    file: str
    batches: Callable[[Sequence[int]], TokenBatch]
    """A batch of some rows."""
    missing: list[int]
    temperature: float
    """Answers are judged at the temperature at which they were drawn, texts as they are."""


def read_texts(config: EvaluateConfig) -> HeldOutTexts:
    """Read the held-out texts for each model.

    Raises:
        BadInput: they cannot be read.
    """
    if config.texts is None:
        return {}
    return {name: read_supervised(config.texts, load_tokenizer(model)) for name, model in config.models.items()}


def check_reference(config: EvaluateConfig) -> None:
    """Check that the reference reads the token ids that every model writes.

    Raises:
        BadInput: names the model with another tokenizer.
    """
    if config.reference is None:
        return
    vocabulary = load_tokenizer(config.models[config.reference]).get_vocab()
    for name, model in config.models.items():
        if load_tokenizer(model).get_vocab() != vocabulary:
            raise BadInput(
                f"reference: {config.reference} has another vocabulary than {name}, so there is no KL between them; "
                "compare models of one tokenizer, or leave the reference out"
            )


def divergences(
    config: EvaluateConfig,
    logs: RowLogs,
    answers: Mapping[str, Sequence[Answer]],
    prompts: Mapping[str, Mapping[str, PromptRecord]],
    keys: Mapping[str, str],
    texts: HeldOutTexts,
    start_cluster: StartCluster,
) -> tuple[dict[str, list[float]], dict[str, TextFit]]:
    """Compute what is missing, one model after another, and return log-ratios of answers and fits of texts by model.

    Args:
        config: of the job.
        logs: the row files.
        answers: by model.
        prompts: by model, by id.
        keys: by model, of its answers.
        texts: by model.
        start_cluster: where the models are loaded.
    """
    for scorer in config.models:
        work = [one for one in _work(config, logs, scorer, answers, prompts, keys, texts) if one.missing]
        # A model divides its logits by one temperature, from its start on; mostly all rows have the same.
        for temperature in dict.fromkeys(one.temperature for one in work):
            alike = [one for one in work if one.temperature == temperature]
            _compute(config, logs, scorer, alike, temperature, start_cluster)
    ratios = {}
    if config.reference is not None:
        for name, given in answers.items():
            own, theirs = (_sums(logs, _file(name, scorer)) for scorer in (name, config.reference))
            ratios[name] = [own[row][0] - theirs[row][0] for row in range(len(given))]
    fits = {}
    for name, loaded in texts.items():
        found = _sums(logs, f"texts/{name}")
        pairs = [found[row] for row in range(len(loaded.rows))]
        fits[name] = TextFit(np.array([value for value, _ in pairs]), np.array([count for _, count in pairs], np.int64))
    return ratios, fits


def _file(writer: str, scorer: str) -> str:
    return f"logprobs/{writer}.under.{scorer}"


def _work(
    config: EvaluateConfig,
    logs: RowLogs,
    scorer: str,
    answers: Mapping[str, Sequence[Answer]],
    prompts: Mapping[str, Mapping[str, PromptRecord]],
    keys: Mapping[str, str],
    texts: HeldOutTexts,
) -> list[_Work]:
    identity = identity_of(config.models[scorer])
    found = []
    writers: list[str] = []
    if config.reference is not None:
        writers = list(answers) if scorer == config.reference else [scorer]
    for writer in writers:
        file, given = _file(writer, scorer), answers[writer]
        logs.prepare(file, key_of(keys[writer], identity, config.rollout.temperature))
        # The tokens that the writer saw, for the reference too.
        records = prompts[writer]

        def answer_batch(
            rows: Sequence[int],
            given: Sequence[Answer] = given,
            records: Mapping[str, PromptRecord] = records,
        ) -> TokenBatch:
            chosen = [given[row] for row in rows]
            return TokenBatch.from_sequences(
                [records[answer.prompt_id].prompt_ids for answer in chosen],
                [np.array(answer.response_ids, np.int32) for answer in chosen],
            )

        found.append(_Work(file, answer_batch, _missing(logs, file, len(given)), config.rollout.temperature))
    if scorer in texts:
        file, loaded = f"texts/{scorer}", texts[scorer]
        logs.prepare(file, key_of(identity, loaded.fingerprint))
        found.append(
            _Work(
                file,
                lambda rows: supervised_batch([loaded.rows[row] for row in rows]),
                _missing(logs, file, len(loaded.rows)),
                temperature=1.0,
            )
        )
    return found


def _missing(logs: RowLogs, file: str, rows: int) -> list[int]:
    known = _sums(logs, file)
    return [row for row in range(rows) if row not in known]


def _sums(logs: RowLogs, file: str) -> dict[int, tuple[float, int]]:
    """Read log-probability and number of learned tokens, by row."""
    return {row["row"]: (row["logprob"], row["tokens"]) for row in logs.read(file)}


def _compute(
    config: EvaluateConfig,
    logs: RowLogs,
    scorer: str,
    work: Sequence[_Work],
    temperature: float,
    start_cluster: StartCluster,
) -> None:
    with (
        start_cluster() as cluster,
        RowProgress(f"log-probabilities of {scorer}", sum(len(one.missing) for one in work)) as progress,
    ):
        trainer = TrainerGroup(
            cluster,
            "measure",
            "policy",
            config.models[scorer],
            TrainerConfig(**config.measure.model_dump()),
            tokens_per_microbatch=config.tokens_per_microbatch,
            total_steps=1,
            seed=config.seed,
            temperature=temperature,
            trainable=False,
        )
        trainer.ready()
        for one in work:
            rows = logs.open(one.file)
            for start in range(0, len(one.missing), ROWS_AT_ONCE):
                asked = one.missing[start : start + ROWS_AT_ONCE]
                for row in _summed(trainer, one.batches(asked), asked):
                    rows.append(row)
                progress.advance(len(asked))
            rows.close()


def _summed(trainer: TrainerGroup, batch: TokenBatch, numbers: Sequence[int]) -> list[dict[str, Any]]:
    flat = trainer.logprobs(SharedBatch.put(batch))["logprobs"].astype(np.float64)
    offsets = batch.response_offsets
    found = []
    for place, number in enumerate(numbers):
        part = slice(offsets[place], offsets[place + 1])
        learned = batch.written[part]
        found.append({"row": number, "logprob": float(flat[part][learned].sum()), "tokens": int(learned.sum())})
    return found
