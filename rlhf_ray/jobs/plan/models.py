"""What `rlhf plan` says of a job's models: the refusals that the job makes of them before it starts."""

import importlib
from collections.abc import Iterator, Set
from pathlib import Path

from rlhf_ray.config.commands import JOBS
from rlhf_ray.config.errors import BadInput
from rlhf_ray.config.job import JobConfig
from rlhf_ray.config.reading.documents import KeyPath
from rlhf_ray.config.reading.verbs import verb_of
from rlhf_ray.config.rollout import RolloutConfig


def refuse_models(config: JobConfig, missing: Set[KeyPath]) -> list[str]:
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
    _refuse_heads(config)
    own = {*config.model_paths(), *config.reward_sources()}
    if any(key in own or key[:-1] in own for key in missing):
        return []
    away = [path for path in config.model_paths().values() if not any(Path(path).glob("*.safetensors"))]
    if away:
        return [f"{away[0]}: its weights are not here, so whether the models can be used was not checked"]
    verb = verb_of(config)
    check = JOBS[verb].check if verb is not None else None
    if check is not None:
        # Here alone, for it leads to all that runs.
        module, _, function = check.partition(":")
        getattr(importlib.import_module(module), function)(config)
    return list(_long_texts(config))


def _refuse_heads(config: JobConfig) -> None:
    """Refuse what engines cannot compute, which a config file tells also where weights or other models are not here."""
    from rlhf_ray.models.coherence import check_coherence
    from rlhf_ray.models.loading import read_model_config
    from rlhf_ray.runs.model_checks import check_heads

    rollout = config.placements().get(("rollout",))
    if isinstance(rollout, RolloutConfig):
        for held in config.held_models().get(("rollout",), []):
            if (Path(held.model.path) / "config.json").is_file():
                try:
                    described = read_model_config(held.model.path, held.model.trust_remote_code)
                except BadInput:
                    continue  # the plan says that its memory is not known, and why
                check_coherence(held.model.path, described, None)
                check_heads(held.model.path, described, rollout)


def _long_texts(config: JobConfig) -> Iterator[str]:
    """Find texts that are longer than those that a model was made for, which it reads all the same."""
    from rlhf_ray.models.loading import read_model_config
    from rlhf_ray.models.positions import described_positions
    from rlhf_ray.runs.model_checks import LONGEST_SAMPLE, text_lengths

    model, longest = config.trained_model(), config.longest_sample()
    if model is None:
        return
    lengths = text_lengths(config) | ({LONGEST_SAMPLE: longest} if longest is not None else {})
    described = described_positions(read_model_config(model.path, model.trust_remote_code))
    for key, tokens in lengths.items():
        if described is not None and tokens > described:
            yield f"{key}: {tokens} tokens, but {model.path} was made for {described} (max_position_embeddings)"
