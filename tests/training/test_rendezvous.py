import pytest
import torch
from training_cases import load_late, meet_beside_a_dead_build, run_processes, start, wait_for_nobody

from rlhf_ray.training.process import RankDeadlines, RendezvousFailed, join


def test_a_rank_that_waits_in_vain_says_so(tmp_path):
    run_processes(wait_for_nobody, 1, tmp_path / "error")
    assert "rank 0 of 2 did not meet the other ranks at 127.0.0.1:" in (tmp_path / "error").read_text()


@pytest.mark.timeout(180)
def test_a_rank_that_loads_late_is_waited_for_and_a_collective_is_not(tiny_model, tmp_path):
    run_processes(load_late, 2, tiny_model.tied, tmp_path)
    for rank in range(2):
        groups, limits = (tmp_path / f"limits_{rank}").read_text().split(" groups: ")
        assert int(groups) > 1, "DeepSpeed makes one of its own"
        assert limits == "{'0:00:02'}"


@pytest.mark.timeout(120)
def test_a_lock_of_a_killed_build_stops_nobody(tmp_path):
    operator = tmp_path / "deepspeed_shm_comm"
    operator.mkdir()
    (operator / "lock").touch()
    run_processes(meet_beside_a_dead_build, 1, tmp_path)
    assert [path.name for path in operator.iterdir()] == ["lock"]


def test_a_process_stays_in_its_group(tiny_model):
    start(tiny_model.tied)
    with pytest.raises(RendezvousFailed, match="another process group"):
        join(1, 2, ("127.0.0.1", 1), torch.device("cpu"), RankDeadlines())
