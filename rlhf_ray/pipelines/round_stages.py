"""The stages of one round of `rlhf iterate`, as commands with the round's paths filled in."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_ray.config.errors import BadInput
from rlhf_ray.config.jobs.iterate import IterateConfig
from rlhf_ray.config.jobs.supervised import RewardTrainingConfig
from rlhf_ray.config.reading.documents import read_document
from rlhf_ray.config.reading.loading import load_config
from rlhf_ray.config.reading.verbs import load_job

FIRST_MODEL, PRESENT_MODEL = "start", "policy"
"""Names of the models in each round's comparison."""

VERBS = ("generate", "reward", "ppo", "evaluate")
"""Stages that have a config file of the user's."""


@dataclass(frozen=True)
class Round:
    """Names of all that a round reads and writes."""

    number: int
    folder: Path

    @classmethod
    def of(cls, config: IterateConfig, number: int) -> "Round":
        """Return the round of a number, from 0."""
        return cls(number, Path(config.output).expanduser() / f"round_{number:02d}")

    @property
    def name(self) -> str:
        """Return the name of the round's folder."""
        return self.folder.name

    @property
    def prompts(self) -> Path:
        """Prompts of the round."""
        return self.folder / "prompts.jsonl"

    @property
    def answers(self) -> Path:
        """Return the file of the answers that the policy gave in the round."""
        return self.folder / "answers.jsonl"

    @property
    def scored(self) -> Path:
        """The same with scores, where sources label."""
        return self.folder / "scored.jsonl"

    @property
    def labels(self) -> Path:
        """Rankings of this round."""
        return self.folder / "rankings.jsonl"

    @property
    def preferences(self) -> Path:
        """Rankings that the reward model learns from."""
        return self.folder / "preferences.jsonl"

    @property
    def evaluation(self) -> Path:
        """Folder of the comparison."""
        return self.folder / "evaluation"


def whole_model(run: Path) -> Path:
    """Return the model that a run ended with: its `final`, or that merged with its base where it is an adapter."""
    return run / "merged" if (run / "final" / "adapter_config.json").is_file() else run / "final"


def reward_runs(config: IterateConfig, number: int) -> list[Path]:
    """Run folders of a round's reward model: one, or that of each member where its config asks for an ensemble.

    Raises:
        BadInput: that config is wrong.
    """
    overrides = command(config, "reward", number)[2:]
    job = load_config(RewardTrainingConfig, config.reward, overrides, check_files=False)
    return [Path(output) for output in job.member_outputs]


def policy_before(config: IterateConfig, number: int) -> str:
    """Return the policy that answers in a round."""
    return config.model if number == 0 else str(whole_model(Round.of(config, number - 1).folder / "ppo"))


def command(config: IterateConfig, verb: str, number: int) -> list[str]:
    """Return the arguments of `rlhf` for one of the user's config files in a round."""
    now = Round.of(config, number)
    policy = policy_before(config, number)
    begins = policy if config.policy_from == "previous" else config.model
    filled: dict[str, Mapping[str, Any]] = {
        "generate": {
            "output": now.answers,
            "model.path": policy,
            "data.path": now.prompts,
            "samples_per_prompt": config.answers,
        },
        "reward": {"output": now.folder / "reward", "data.path": now.preferences},
        "ppo": {"output": now.folder / "ppo", "model.path": begins},
        "evaluate": {
            "output": now.evaluation,
            f"models.{FIRST_MODEL}.path": config.model,
            f"models.{PRESENT_MODEL}.path": whole_model(now.folder / "ppo"),
            f"models.{PRESENT_MODEL}.run": now.folder / "ppo",
            "baseline": FIRST_MODEL,
            "reference": FIRST_MODEL,
        },
    }
    file = getattr(config, verb)
    settings = dict(filled[verb]) | {"seed": config.seed + number}
    if verb in ("ppo", "evaluate"):
        settings |= _reward_model(file, verb, [str(whole_model(run)) for run in reward_runs(config, number)])
    return [verb, file, *(word for key, value in settings.items() for word in (f"--{key}", str(value)))]


def _reward_model(file: str, verb: str, members: Sequence[str]) -> dict[str, str]:
    """Say where the round's reward model belongs, all members of it: the first model reward without a path.

    Raises:
        BadInput: PPO has none, or it names other members where the round's model has several.
    """
    rewards = read_document(file).data.get("rewards") or []
    for index, source in enumerate(rewards if isinstance(rewards, list) else []):
        if isinstance(source, dict) and source.get("kind") == "model" and not source.get("path"):
            if len(members) == 1:
                return {f"rewards.{index}.path": members[0]}
            if source.get("ensemble"):
                raise BadInput(
                    f"{file}: rewards.{index}.ensemble: is filled in with the {len(members)} members of the round's "
                    "reward model; leave it out"
                )
            return {f"rewards.{index}.path": members[0], f"rewards.{index}.ensemble": json.dumps(members[1:])}
    if verb == "ppo":
        raise BadInput(
            f"{file}: rewards: no reward of kind model without a path, so the round's reward model has no place; "
            "write {kind: model, ...} and leave its path out"
        )
    return {}


def check_stages(config: IterateConfig) -> None:
    """Check the config files of all stages before anything starts.

    Raises:
        BadInput: one is wrong; names file, line and key.
    """
    for verb in VERBS:
        file = getattr(config, verb)
        try:
            load_job(verb, command(config, verb, 0)[1:], check_files=False)
        except BadInput as error:
            lines = [line if file in line else f"{file}: {line}" for line in str(error).splitlines()]
            raise BadInput("\n".join(f"{verb}: {line}" for line in lines)) from None
