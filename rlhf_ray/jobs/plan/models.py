"""What `rlhf plan` says of a job's models: the refusals that the job makes of them before it starts."""

from collections.abc import Iterator, Set
from pathlib import Path

from rlhf_ray.config.base import Section
from rlhf_ray.config.checks.parts import functions_of, longest_sample, models_of
from rlhf_ray.config.errors import BadInput
from rlhf_ray.config.jobs.evaluate import EvaluateConfig
from rlhf_ray.config.jobs.inference import GenerateConfig, ScoreConfig
from rlhf_ray.config.jobs.ppo import PPOConfig
from rlhf_ray.config.jobs.supervised import SupervisedConfig
from rlhf_ray.config.reading.documents import KeyPath


def refuse_models(config: Section, missing: Set[KeyPath]) -> list[str]:
    """Refuse the models that the job would refuse.

    Args:
        config: of any job.
        missing: keys whose files are not there.

    Returns:
        Warnings: of texts that are longer than a model was made for; or that models were not looked at, because an
        earlier job has yet to write them, or the hub has them.

    Raises:
        BadInput: names the key and what to do.
    """
    if missing & (models_of(config).keys() | functions_of(config).keys()):
        return []
    away = [path for path in models_of(config).values() if not any(Path(path).glob("*.safetensors"))]
    if away:
        return [f"{away[0]}: its weights are not here, so whether the models can be used was not checked"]
    # Here alone, for they lead to all that runs.
    from rlhf_ray.jobs.evaluate import answers as evaluate_answers
    from rlhf_ray.jobs.inference import generate
    from rlhf_ray.jobs.ppo import run as ppo
    from rlhf_ray.runs import model_checks

    if isinstance(config, SupervisedConfig):
        model_checks.check_supervised(config, model_checks.job_tokenizer(config.model))
    if isinstance(config, PPOConfig):
        ppo.check_models(config, model_checks.job_tokenizer(config.model))
    if isinstance(config, GenerateConfig):
        generate.check_models(config, model_checks.job_tokenizer(config.model))
    if isinstance(config, ScoreConfig | EvaluateConfig):
        model_checks.check_reward_sources(config.rewards)
    if isinstance(config, EvaluateConfig):
        for name, model in config.models.items():
            try:
                evaluate_answers.check_model(config, model)
            except BadInput as error:
                raise BadInput(f"models.{name}: {error}") from error
    return list(_long_texts(config))


def _long_texts(config: Section) -> Iterator[str]:
    """Texts that are longer than those that a model was made for, which it reads all the same."""
    from rlhf_ray.models.loading import read_config
    from rlhf_ray.models.positions import described_positions
    from rlhf_ray.runs.model_checks import LONGEST_SAMPLE, text_lengths

    lengths = text_lengths(config)
    if not isinstance(config, SupervisedConfig | PPOConfig):
        return
    if isinstance(config, PPOConfig):
        lengths |= {LONGEST_SAMPLE: longest_sample(config)}
    described = described_positions(read_config(config.model.path, config.model.trust_remote_code))
    for key, tokens in lengths.items():
        if described is not None and tokens > described:
            yield f"{key}: {tokens} tokens, but {config.model.path} was made for {described} (max_position_embeddings)"
