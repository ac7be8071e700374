"""Continued pre-training, SFT, merge, reward, merge, PPO, DPO, evaluation: `python -m examples.full_pipeline`.

Each stage is a command that a user would type and reads what the one before wrote. The same command goes on where it
was stopped.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from examples.full_pipeline.loading import check_loading
from examples.reviews.build import build
from examples.reviews.grammar import texts
from rlhf_ray.config.errors import RlhfError
from rlhf_ray.models.tiny import build_tiny
from rlhf_ray.pipelines.stages import Stage, Stages, stage_table

HERE = Path(__file__).parent
TEXTS, DEMONSTRATIONS, PAIRS, HELD_OUT = 5000, 2400, 1600, 200
PPO_STEPS = 24
SEED_OF_TEXTS = 77
"""Apart from the seeds of the other files, so that pre-training reads reviews of its own."""


def main() -> int:
    """Run all stages and sum up."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("outputs/full_pipeline"), help="folder of all stages")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=float, default=1.0, help="share of texts, pairs and steps, for a quick look")
    arguments = parser.parse_args()
    output: Path = arguments.output
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False, markup=False)
    try:
        output.mkdir(parents=True, exist_ok=True)
        stages = Stages(output, lambda text: console.print(text, style="bold", soft_wrap=True))
        for stage in pipeline(output, arguments.seed, arguments.scale):
            stages.run(stage)
    except RlhfError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    console.print(stage_table(list(stages.records.values())))
    for line in result_lines(output):
        console.print(line)
    return 0


def pipeline(output: Path, seed: int, scale: float) -> list[Stage]:
    """List all stages in their order, with the paths of this run; the rest is in the YAML files beside this one."""

    def share(full: int) -> int:
        return max(4, round(full * scale))

    def job(verb: str, name: str, **settings: Any) -> list[str]:
        arguments = [verb, str(HERE / f"{name}.yaml"), "--output", str(output / name), "--seed", str(seed)]
        for key, value in settings.items():
            arguments += [f"--{key.replace('__', '.')}", str(value)]
        return arguments

    def trained(verb: str, name: str, model: Path, rows: str, **settings: Any) -> Stage:
        suffix = "txt" if rows == "texts" else "jsonl"
        held_out = {} if verb == "ppo" else {"evaluation_data__path": data / f"{rows}_held_out.{suffix}"}
        paths = {"model__path": model, "data__path": data / f"{rows}.{suffix}", **held_out}
        return Stage(name, job(verb, name, **paths, **settings), output / name / "final")

    def merge(name: str) -> Stage:
        merged = output / f"{name}_merged"
        return Stage(
            f"merge {name}", ["merge", str(output / name / "final"), "--output", str(merged)], merged / "config.json"
        )

    data, sft, reward = output / "data", output / "sft_merged", output / "reward_merged"
    steps = {} if scale == 1 else {"steps": share(PPO_STEPS)}
    judged: dict[str, str | Path] = {f"models__{name}__path": output / name / "final" for name in ("dpo", "ppo")}
    judged |= {"models__sft__path": sft, "models__sft__run": output / "sft", "rewards__0__path": reward}
    held_out = {"data__path": data / "prompts_held_out.jsonl", "texts__path": data / "texts_held_out.txt"}
    judged |= {"oracle__function": f"{HERE / 'judgement.py'}:positive"}
    return [
        Stage("data", lambda: write_data(output, seed, share), output / "base" / "config.json"),
        trained("sft", "pretrain", output / "base", "texts"),
        trained("sft", "sft", output / "pretrain" / "final", "sft"),
        merge("sft"),
        trained("reward", "reward", sft, "pairs"),
        merge("reward"),
        trained("ppo", "ppo", sft, "prompts_train", rewards__0__path=reward, **steps),
        trained("dpo", "dpo", sft, "pairs", reference_cache=output / "reference_logprobs"),
        Stage(
            "evaluate", job("evaluate", "evaluation", **judged, **held_out), output / "evaluation" / "comparison.html"
        ),
        Stage("load", lambda: check_loading(output), output / "loaded.json"),
    ]


def write_data(output: Path, seed: int, share: Any) -> None:
    """Write texts, demonstrations, pairs and prompts of the grammar, and a tokenizer and untrained model for them."""
    data = output / "data"
    build(data, seed, share(DEMONSTRATIONS), 2, share(PAIRS), share(HELD_OUT))
    for name, count, offset in (("texts", TEXTS, 0), ("texts_held_out", HELD_OUT, 1)):
        lines = [review.text.replace("\n", " ") for review in texts(share(count), seed + SEED_OF_TEXTS + offset)]
        (data / f"{name}.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    words = (data / "texts.txt").read_text(encoding="utf-8").splitlines()
    build_tiny(output / "base", words, hidden=128, layers=4, heads=4, vocab_size=2048, tie=True, seed=seed)


def result_lines(output: Path) -> list[str]:
    """Return reward, oracle and KL of each model, and where the page is."""
    summary = json.loads((output / "evaluation" / "summary.json").read_text(encoding="utf-8"))
    lines = []
    for name, figures in summary["models"].items():
        values = {key: figures[key]["value"] for key in ("reward", "oracle", "kl", "perplexity")}
        lines.append(f"{name:<5}" + "  ".join(f"{key} {value:.3f}" for key, value in values.items()))
    return [*lines, f"page: {output / 'evaluation' / 'comparison.html'}"]


if __name__ == "__main__":
    sys.exit(main())
