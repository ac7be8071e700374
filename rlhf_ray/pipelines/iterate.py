"""`rlhf iterate`: collect, label, reward model, PPO, evaluate; round after round, from wherever it stopped."""

import sys
from collections.abc import Iterator
from pathlib import Path

import yaml
from rich.console import Console

from rlhf_ray.config.errors import BadInput
from rlhf_ray.config.jobs.iterate import IterateConfig, SourceLabels
from rlhf_ray.pipelines.labelling import (
    all_prompts,
    write_preferences,
    write_prompts,
    write_rankings,
    write_score_config,
)
from rlhf_ray.pipelines.round_stages import VERBS, Round, check_stages, command, reward_runs, whole_model
from rlhf_ray.pipelines.rounds import figures_of, round_table, write_rounds
from rlhf_ray.pipelines.stages import Stage, Stages, stage_table
from rlhf_ray.redaction.texts import hide_forms
from rlhf_ray.runs.folder import lock_folder
from rlhf_ray.tracking.records import replace_file
from rlhf_ray.tracking.terminal import plain_console

SETTINGS_FOLDER = "settings"
MAY_CHANGE = {"rounds", "output"}
"""Settings that another start may have otherwise."""


def run(config: IterateConfig) -> None:
    """Run all rounds; finished stages are not repeated.

    Raises:
        BadInput: a config is wrong, or the folder holds rounds of other settings.
        StageFailed: a stage failed; it is named. StageStopped: it was asked to stop.
        WaitingForPeople: a round's answers wait for their labels.
    """
    console = plain_console(sys.stdout)
    check_stages(config)
    all_prompts(config)
    folder = Path(config.output).expanduser()
    with lock_folder(folder):
        _keep_settings(config, folder)
        stages = Stages(folder, lambda text: console.print(text, soft_wrap=True))
        found = []
        for number in range(config.rounds):
            now = Round.of(config, number)
            for stage in round_stages(config, now):
                stages.run(stage)
            found.append(figures_of(now))
            write_rounds(folder, found)
    wide = Console(width=max(Console().width, 100))
    wide.print(stage_table(list(stages.records.values())))
    wide.print(round_table(found))
    console.print(f"curves: {folder / 'curves.png'}\npage:   {folder / 'report.html'}", soft_wrap=True)


def round_stages(config: IterateConfig, now: Round) -> Iterator[Stage]:
    """Yield the stages of a round, each made when those before it are finished."""
    number, folder = now.number, now.folder
    yield Stage(f"{now.name} prompts", lambda: write_prompts(config, now), now.prompts)
    yield Stage(f"{now.name} collect", command(config, "generate", number), now.answers)
    if isinstance(config.labels, SourceLabels):
        score = write_score_config(config.labels.rewards, now)
        yield Stage(f"{now.name} score", ["score", str(score)], now.scored)
    yield Stage(f"{now.name} label", lambda: write_rankings(config, config.labels, now), now.labels)
    yield Stage(f"{now.name} preferences", lambda: write_preferences(config, now), now.preferences)
    yield Stage(f"{now.name} reward", command(config, "reward", number), folder / "reward" / "final")
    for run in reward_runs(config, number):
        yield from _merged(now, run)
    yield Stage(f"{now.name} ppo", command(config, "ppo", number), folder / "ppo" / "final")
    yield from _merged(now, folder / "ppo")
    yield Stage(f"{now.name} evaluate", command(config, "evaluate", number), now.evaluation / "comparison.html")


def _merged(now: Round, run: Path) -> Iterator[Stage]:
    """Make an adapter a whole model, which the next stages take."""
    merged = whole_model(run)
    if merged.name == "merged":
        arguments = ["merge", str(run / "final"), "--output", str(merged)]
        yield Stage(f"{now.name} merge {run.relative_to(now.folder)}", arguments, merged / "config.json")


def _keep_settings(config: IterateConfig, folder: Path) -> None:
    """Keep the settings and the files that they name beside the rounds, and refuse others when going on.

    Raises:
        BadInput: something has changed, so that the rounds could not be compared.
    """
    kept = folder / SETTINGS_FOLDER
    kept.mkdir(exist_ok=True)
    settings = config.model_dump(mode="json", exclude=MAY_CHANGE)
    contents = {
        f"{verb}.yaml": hide_forms(Path(getattr(config, verb)).read_text(encoding="utf-8")).encode() for verb in VERBS
    }
    contents["iterate.yaml"] = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True).encode()
    for name, content in contents.items():
        file = kept / name
        if file.exists() and file.read_bytes() != content:
            raise BadInput(
                f"output: {folder} holds rounds with another {name} (see {file}), and rounds of different settings do "
                "not compare; put the settings back, or choose another output"
            )
    for name, content in contents.items():
        replace_file(kept / name, content)
