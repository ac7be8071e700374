"""The whole road: its commands parse and fit together; on a small scale, they run."""

import json
from pathlib import Path

import pytest

from examples.full_pipeline.__main__ import main, pipeline
from rlhf_ray import cli
from rlhf_ray.config.reading.verbs import SCHEMAS, load_job

STAGES = ["data", "pretrain", "sft", "merge sft", "reward", "merge reward", "ppo", "dpo", "evaluate", "load"]


def test_each_stage_reads_what_the_one_before_wrote(tmp_path: Path) -> None:
    stages = pipeline(tmp_path, seed=3, scale=0.5)
    assert [stage.name for stage in stages] == STAGES
    made = {stage.name: stage.makes for stage in stages}
    reads = {
        "sft": made["pretrain"],
        "merge sft": made["sft"],
        "reward": made["merge sft"].parent,
        "merge reward": made["reward"],
        "ppo": made["merge reward"].parent,
        "dpo": made["merge sft"].parent,
        "evaluate": made["ppo"],
    }
    for stage in stages:
        if callable(stage.work):
            continue
        verb, *arguments = stage.work
        if verb in SCHEMAS:
            load_job(verb, arguments, check_files=False)
        else:
            assert verb in cli.TOOLS
        if stage.name in reads:
            assert str(reads[stage.name]) in arguments


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_it_runs_and_every_result_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "out"
    monkeypatch.setattr("sys.argv", ["full_pipeline", "--output", str(output), "--scale", "0.04"])
    assert main() == 0
    records = json.loads((output / "stages.json").read_text())
    assert [row["name"] for row in records] == STAGES
    assert all(row["finished"] and row["seconds"] > 0 and row["peak_memory"] for row in records)
    loaded = json.loads((output / "loaded.json").read_text())
    assert len(loaded) == 7
    summary = json.loads((output / "evaluation" / "summary.json").read_text())
    for name in ("sft", "dpo", "ppo"):
        figures = summary["models"][name]
        assert all(figures[key] is not None for key in ("reward", "oracle", "kl", "seconds", "peak_memory_gib"))
    before = (output / "stages.json").stat().st_mtime_ns
    assert main() == 0, "nothing is repeated"
    assert (output / "stages.json").stat().st_mtime_ns == before
