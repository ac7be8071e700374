"""What `rlhf plan` says of writing ahead."""

from pathlib import Path

import pytest

from rlhf_ray import cli
from rlhf_ray.cluster.placement import lay_out
from rlhf_ray.config.placement import GENERATE, SCORE, SYNC, TRAIN, GroupConfig, PlacementConfig
from rlhf_ray.jobs.plan.floors import Floor
from rlhf_ray.jobs.plan.staleness import staleness_lines
from tests.jobs.plan.plan_models import CONFIGS, with_models


def lines(writing: float, learning: float, engines: int, trainers: int, staleness: int = 0, gpus: int = 1) -> list[str]:
    """Those of roles on devices of their own, whose scoring, learning and sync share `learning` seconds."""
    groups = {"main": GroupConfig(nodes=1, gpus_per_node=16, cpus_per_node=16)}
    roles = {
        "policy": PlacementConfig(workers=trainers, gpus_per_worker=1, cpus_per_worker=0.1, on="main"),
        "rollout": PlacementConfig(workers=engines, gpus_per_worker=gpus, cpus_per_worker=0.1, on="main"),
    }
    found = {
        GENERATE: Floor(computing=1, moving=writing),
        SCORE: Floor(computing=learning / 4),
        TRAIN: Floor(computing=learning / 2),
        SYNC: Floor(moving=learning / 8, turns=learning / 8),
    }
    return list(staleness_lines(staleness, lay_out(groups, roles), gpus, found))


def test_a_step_takes_the_longer_track_where_engines_write_ahead() -> None:
    said, advice, *_ = lines(12, 20, 4, 8)
    assert "engines write for 12.0 s and the other roles work for 20.0 s" in said
    assert "32.0 s at max_staleness 0, 20.0 s at 1 (1.60 times as fast)" in said
    assert "max_staleness: 1" in advice
    assert not any("Set algorithm" in line for line in lines(12, 20, 4, 8, staleness=1)), "it is set already"


def test_where_one_side_takes_nearly_all_of_the_time_nothing_is_advised() -> None:
    [said, split] = lines(1, 40, 8, 8)
    assert "(1.02 times as fast)" in said
    # 8 s of one engine's GPU against 320 s of one trainer's: one of 16 and fifteen.
    assert "With 1 of the 16 GPUs for engines and 15 for the other roles, instead of 8 and 8" in split
    assert f"about {40 * 8 / 15:.1f} s" in split


def test_a_split_gives_engines_whole_groups_of_gpus() -> None:
    # 80 s of engines on 4 GPUs, 10 s of 4 others: 8 to 1; of 8 GPUs at most 6 in pairs.
    *_, split = lines(80, 10, 2, 4, gpus=2)
    assert "With 6 of the 8 GPUs for engines and 2 for" in split
    assert f"about {80 * 4 / 6:.1f} s" in split


def test_nothing_is_said_where_a_floor_is_not_known() -> None:
    assert not lines(0, 0, 4, 4)


@pytest.mark.parametrize(
    ("preset", "said"), [("ppo_7b_8gpu", "max_staleness stays 0"), ("ppo_7b_4node", "times as fast")]
)
def test_presets_say_it(preset: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command, _ = with_models(CONFIGS / f"{preset}.yaml", tmp_path)
    assert cli.main(command) == 0
    assert said in " ".join(capsys.readouterr().out.split())
