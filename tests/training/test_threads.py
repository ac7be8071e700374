"""Compute threads of a rank on CPU, alone and beside others."""

import os
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from training_cases import DIVISIONS, PolicyLoss, make_batch, make_columns, trainer_config

from rlhf_ray.cluster.endpoint import free_port
from rlhf_ray.config.model import ModelConfig
from rlhf_ray.training.process import ThreadDemand, Threads, part_of
from rlhf_ray.training.rank import TrainerRank


@pytest.fixture(autouse=True)
def two_cpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("cpus", "own", "together", "threads"),
    [
        (2, 2, 2, 2),  # alone, or all have room
        (8, 2, 3, 2),
        (2, 2, 3, 1),  # the policy beside a reference of one thread, which keeps it
        (2, 1, 3, 1),
        (16, 16, 24, 10),
        (16, 8, 24, 5),
        (2, 1, 5, 1),  # never none
        (2, 4, 0, 4),  # nobody counted
    ],
)
def test_each_gets_its_part_of_the_cpus(cpus: int, own: int, together: int, threads: int) -> None:
    assert part_of(cpus, own, together) == threads


def test_a_gpu_leaves_threads_as_they_are() -> None:
    torch.set_num_threads(2)
    threads = Threads(torch.device("cuda"), 1, ThreadDemand(inferring=4, training=4))
    threads.infer()
    threads.train()
    assert torch.get_num_threads() == 2


def test_a_rank_infers_beside_others_and_trains_alone(tiny_model) -> None:
    rank = TrainerRank(
        "policy",
        ModelConfig(path=str(tiny_model.tied), dtype="float32"),
        trainer_config(threads=2),
        total_steps=2,
        seed=0,
        master=("127.0.0.1", free_port()),
        demand=ThreadDemand(inferring=3, training=2),
    )
    seen: list[int] = []
    rank.network.base_model.register_forward_hook(lambda *_: seen.append(torch.get_num_threads()))
    batch = make_batch()
    rank.logprobs(batch, [np.arange(batch.rows)])
    rank.train_step(batch, DIVISIONS["one"], PolicyLoss(), make_columns(batch))
    rank.logprobs(batch, [np.arange(batch.rows)])
    assert [count for count, before in zip(seen, [0, *seen], strict=False) if count != before] == [1, 2, 1]
