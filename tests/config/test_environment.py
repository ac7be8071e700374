"""Environment variables of workers: which are refused, and whose wins. tests/cluster has them in real workers."""

from collections.abc import Callable
from typing import Any

import pytest

from rlhf_ray.config.environment import EnvironmentConfig
from tests.planted_secrets import PLANTED


def test_those_of_a_role_win() -> None:
    environment = EnvironmentConfig(
        all={"NCCL_DEBUG": "WARN", "NCCL_SOCKET_IFNAME": "eth0"},
        roles={"critics": {"NCCL_DEBUG": "INFO"}, "rewards": {"NCCL_IB_HCA": "mlx5_0"}},
    )
    assert environment.of("policy") == {"NCCL_DEBUG": "WARN", "NCCL_SOCKET_IFNAME": "eth0"}
    for critic in ("critic", "cost_critic"):
        assert environment.of(critic)["NCCL_DEBUG"] == "INFO"
    assert environment.of("rewards.helpful")["NCCL_IB_HCA"] == "mlx5_0"


@pytest.mark.parametrize(
    ("environment", "key", "words"),
    [
        ({"all": {"CUDA_VISIBLE_DEVICES": "0"}}, "all.CUDA_VISIBLE_DEVICES", "is set by `gpus_per_worker`"),
        ({"roles": {"policy": {"OMP_NUM_THREADS": "8"}}}, "roles.policy.OMP_NUM_THREADS", "set by `threads`"),
        ({"all": {"MASTER_ADDR": "node"}}, "all.MASTER_ADDR", "is set by the ranks' own meeting"),
        ({"all": {"RAY_ADDRESS": "node:6379"}}, "all.RAY_ADDRESS", "is set by Ray and `cluster`"),
        ({"all": {"WANDB_API_KEY": "abc"}}, "all.WANDB_API_KEY", "is a secret by its name"),
        ({"all": {"SOME_NAME": PLANTED["PLANTED_API_KEY"]}}, "all", "holds the value of the environment variable"),
        ({"secrets": ["hf_" + "aB3" * 12]}, "secrets.0", "is the name of an environment variable"),
        ({"all": {"A B": "x"}}, "all.A B", "is no name of an environment variable"),
        ({"roles": {"trainer": {"NCCL_DEBUG": "INFO"}}}, "roles.trainer", "the job has no role of this name"),
    ],
)
def test_what_would_break_a_job_or_tell_a_secret_is_refused(
    environment: dict[str, Any], key: str, words: str, refuses: Callable[[dict[str, Any], str, str], None]
) -> None:
    refuses({"environment": environment}, f"environment.{key}", words)
