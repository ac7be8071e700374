"""Commands read by the code that would run them, where running takes more than a moment.

Configs are loaded with the files that they name, and models and rows that a run would leave are put where it would
leave them. Verbs that take a moment run.
"""

import contextlib
import io
import re
import runpy
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

import rlhf_ray
from rlhf_ray import cli
from rlhf_ray.api.results import Run
from rlhf_ray.config.base import Section as Config
from rlhf_ray.config.jobs.inference import InferenceConfig
from rlhf_ray.config.jobs.labelling import FeedbackPageConfig
from rlhf_ray.config.jobs.supervised import RewardTrainingConfig, SupervisedConfig
from rlhf_ray.config.reading.loading import dump_config, load_arguments
from rlhf_ray.config.reading.verbs import deduce_verb, import_schema, load_job
from rlhf_ray.config.run import RunConfig
from rlhf_ray.jobs.plan.run import DOES_NOT_FIT
from rlhf_ray.runs.layouts import checked_layouts
from rlhf_ray.tracking.names import METRICS
from rlhf_ray.tracking.records import METRICS_FILE
from rlhf_ray.tracking.run_record import RunRecord
from tests.docs.clone import Clone, NotHere, file_of, not_here, of_the_hub, write_rows
from tests.docs.pages import ROOT

TAKE_A_MOMENT = {"init", "schema", "completion", "convert", "plan", "submit", "plot", "runs", "data"}
"""Verbs that run also where commands are only read: no Ray, no training."""

PRINTED = re.compile(r"print\(.*\)  # (.*)$", re.MULTILINE)

RUNS = ("sft", "reward", "ppo")
LEFT_BY: dict[str, tuple[str, tuple[str, ...]]] = {
    "examples.reviews.demo": (
        "outputs/demo",
        (
            *(f"{run}/final" for run in RUNS),
            *(f"data/{name}.jsonl" for name in ("sft", "sft_held_out", "pairs", "pairs_held_out")),
            *(f"data/{name}.jsonl" for name in ("prompts_train", "prompts_held_out")),
            *(f"data/{name}.tsv" for name in ("rankings", "rankings_held_out")),
        ),
    ),
    "examples.exact_answers.build": (
        "outputs/exact_answers",
        ("base", *(f"data/{name}.jsonl" for name in ("sft", "sft_held_out", "prompts_train", "prompts_held_out"))),
    ),
    "examples.full_pipeline": (
        "outputs/full_pipeline",
        (
            *("sft_merged", "reward_merged", "dpo/final", "ppo/final", "sft/config.yaml"),
            *("data/prompts_held_out.jsonl", "data/texts_held_out.txt"),
        ),
    ),
    "examples.sentiment_zh.build": (
        "outputs/sentiment_zh",
        (
            *("base", "classifier", "data/sft.jsonl", "data/sft_held_out.jsonl", "data/prompts_train.jsonl"),
            *("data/prompts_held_out.jsonl", "data/rankings.tsv", "data/rankings_held_out.tsv"),
            "data/two_texts.jsonl",
        ),
    ),
    "examples.sentiment_zh.demo": (
        "outputs/sentiment_zh",
        ("sft/final", "ppo/final", "reward/final", "data/prompts_train.jsonl", "two_texts_scored.jsonl"),
    ),
    "examples.sentiment_zh.ppo": ("outputs/sentiment_zh", ("ppo/final",)),
    "examples.sentiment_zh.reward_model": ("outputs/sentiment_zh", ("reward/final",)),
}
"""What modules of the examples leave for others, in which folder; a slow test looks whether they do."""


class Reader(Clone):
    """Read the commands of pages, and put what they would leave."""

    def __init__(self, folder: Path, model: Path, patch: pytest.MonkeyPatch) -> None:
        """Patch the current directory as commands change it, and what runs and loads models from Python."""
        super().__init__(folder, model)
        self.patch = patch
        self.names: dict[str, Any] = {}
        patch.chdir(folder)
        patch.setattr(rlhf_ray, "run", self._run)
        patch.setattr(rlhf_ray, "RewardModel", ReadModel)

    def command(self, words: Any, file: str | None = None) -> None:
        super().command(words, file)
        self.patch.chdir(self.cwd)

    def tool(self, words: list[str], file: str | None) -> None:
        verb, *arguments = words
        if verb in TAKE_A_MOMENT or "--help" in arguments:
            self._run_here(words, file)
            return
        tool = cli.TOOLS[verb]
        said = load_arguments(import_schema(tool.schema), arguments, positional=tool.positional, rest=tool.rest)
        if verb == "merge":
            self.write_model(self.cwd / said.model_dump()["output"])

    def job(self, verb: str, arguments: list[str]) -> None:
        config = load_job(verb, arguments, check_files=False)
        lacking = not_here(config)
        if lacking != "several machines":
            load_job(verb, arguments)
        checked_layouts(config)
        if verb in TAKE_A_MOMENT:
            self._run_here([verb, *arguments], None)
        else:
            self._leave(config)
        if lacking is not None:
            raise NotHere(lacking)

    def module(self, name: str, arguments: list[str]) -> None:
        options = {word.split("=")[0] for word in arguments if word.startswith("--")}
        if options:
            said = self._help(name)
            assert not [option for option in options if option not in said], f"{name} has not all of {options}"
        named = [word for word in arguments if "/" in word and not options]
        assert not [path for path in named if not (self.cwd / path).exists()], f"{named} is not there yet"
        folder, left = LEFT_BY.get(name, ("", ()))
        if "--output" in arguments:
            folder = arguments[arguments.index("--output") + 1]
        for path in left:
            self._leave_at(self.cwd / folder / path)

    def python(self, text: str) -> None:
        file = file_of(text)
        if file is not None:
            (self.cwd / file).write_text(text)
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(text, file or "block", "exec"), self.names)
        for said in PRINTED.findall(text):
            assert said in printed.getvalue()

    def _run_here(self, words: list[str], file: str | None) -> None:
        printed, warned = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(warned):
            code = cli.main(words)
        is_unknown = words[0] == "plan" and "--help" not in words and of_the_hub(_planned(words[1:]))
        assert code == (DOES_NOT_FIT if is_unknown else 0), f"{words}: {printed.getvalue()}{warned.getvalue()}"
        if file is not None:
            (self.cwd / file).write_text(printed.getvalue())

    def _run(self, config: Any, overrides: Any = None, *, verb: str | None = None) -> Run:
        read = rlhf_ray.read_config(config, overrides, verb=verb)
        self._leave(read)
        return Run(Path(read.model_dump()["output"]))

    def _leave(self, config: Config) -> None:
        """Put what the run of a job would leave."""
        if isinstance(config, RunConfig):
            folder = self.cwd / config.output
            if not Path(config.output).is_absolute():
                kind = "reward model" if isinstance(config, RewardTrainingConfig) else "model"
                has_adapter = isinstance(config, SupervisedConfig) and config.trainer.lora is not None
                self.write_model(folder / "final", "adapter" if has_adapter else kind)
                (folder / "config.yaml").write_text(dump_config(config))
                row = '"step": 1, ' + ", ".join(f'"{metric.name}": 0.5' for metric in METRICS)
                (folder / METRICS_FILE).write_text(f"{{{row}}}\n")
                RunRecord("1", 1, {}).ended("finished").write(folder)
        elif isinstance(config, InferenceConfig):
            write_rows(self.cwd / config.output, ["prompt", "completion"])
        elif isinstance(config, FeedbackPageConfig) and config.export is not None:
            write_rows(self.cwd / config.export, ["prompt", "responses"])

    def _leave_at(self, path: Path) -> None:
        if path.suffix in {".jsonl", ".tsv", ".txt", ".yaml"}:
            write_rows(path, ["prompt", "completion"])
        else:
            self.write_model(path, "reward model" if "reward" in f"{path.parent.name}/{path.name}" else "model")

    def _help(self, name: str) -> str:
        printed = io.StringIO()
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
            patch.setattr(sys, "argv", [name, "--help"])
            patch.syspath_prepend(str(ROOT))
            # That it was imported before, by another test, changes nothing: its own namespace is a new one.
            with contextlib.suppress(SystemExit), warnings.catch_warnings(action="ignore"):
                runpy.run_module(name, run_name="__main__")
        return printed.getvalue()


class ReadModel:
    """Stand for `rlhf_ray.RewardModel` where nothing is computed."""

    def __init__(self, path: str) -> None:
        """Look whether the model is there."""
        assert (Path(path) / "config.json").is_file(), f"{path} is no model that was made before"

    def score(self, prompts: list[str], completions: list[str] | None = None) -> list[float]:
        """Return a score for each."""
        return [0.0 for _ in completions or prompts]


def _planned(arguments: list[str]) -> Config:
    """Return the job that a plan is of."""
    tool = cli.TOOLS["plan"]
    said = load_arguments(import_schema(tool.schema), arguments, positional=tool.positional, rest=tool.rest)
    verb, *rest = said.model_dump()["job"]
    return load_job(*((verb, rest) if verb in cli.JOBS else (deduce_verb(verb), [verb, *rest])), check_files=False)
