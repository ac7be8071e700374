import pytest

from rlhf_ray.config.errors import BadInput
from rlhf_ray.config.model import ModelConfig
from rlhf_ray.config.rollout import RolloutConfig
from rlhf_ray.rollout.engine_arguments import (
    choose_transport,
    engine_arguments,
    engine_environment,
    gpu_arguments,
    gpu_share,
    tensor_parallel_size,
    worker_cpus,
)

MODEL = ModelConfig(path="model", dtype="float32")


def arguments(**rollout: object) -> dict[str, object]:
    return engine_arguments(MODEL, RolloutConfig(**rollout), transport="gloo", seed=1, max_tokens=100)


@pytest.mark.parametrize(
    ("rollout", "overlap", "transport"),
    [
        ({}, "none", "gloo"),
        ({"gpus_per_worker": 1}, "none", "nccl"),
        ({"gpus_per_worker": 0.5}, "all", "ipc"),
        ({"gpus_per_worker": 1, "transport": "nccl"}, "none", "nccl"),
        ({"gpus_per_worker": 1, "transport": "ipc"}, "all", "ipc"),
    ],
)
def test_transport_follows_the_devices(rollout: dict[str, object], overlap: str, transport: str):
    assert choose_transport(RolloutConfig(**rollout), overlap) == transport


def test_an_engine_has_as_long_to_load_as_its_role():
    """Else vLLM ends it after ten minutes of its own, and NCCL the workers that wait for a slower one."""
    rollout = RolloutConfig(gpus_per_worker=8)
    told = engine_arguments(MODEL, rollout, transport="nccl", seed=1, max_tokens=100, load_seconds=3508.2)
    assert told["distributed_timeout_seconds"] == 3509
    environment = engine_environment(rollout, transport="nccl", index=0, load_seconds=3508.2)
    assert environment["VLLM_ENGINE_READY_TIMEOUT_S"] == "3509"


def test_engines_half_on_the_policys_devices_are_refused():
    with pytest.raises(BadInput, match="rollout: some of the engines' GPUs are the policy's"):
        choose_transport(RolloutConfig(gpus_per_worker=2), "some")


def test_nccl_does_not_join_two_processes_on_one_gpu():
    with pytest.raises(BadInput, match="nccl cannot join two processes on one GPU"):
        choose_transport(RolloutConfig(gpus_per_worker=1, transport="nccl"), "all")


@pytest.mark.parametrize("rollout", [{"transport": "nccl"}, {"transport": "gloo", "gpus_per_worker": 1}])
def test_transport_that_cannot_reach_the_engines_is_refused(rollout: dict[str, object]):
    with pytest.raises(BadInput, match=r"rollout\.transport"):
        choose_transport(RolloutConfig(**rollout), "none")


def test_gpus_are_the_tensor_parallel_size():
    assert tensor_parallel_size(RolloutConfig(gpus_per_worker=4)) == 4
    assert tensor_parallel_size(RolloutConfig(gpus_per_worker=0.25)) == 1
    assert tensor_parallel_size(RolloutConfig(tensor_parallel=2)) == 2
    with pytest.raises(BadInput, match="contradicts"):
        tensor_parallel_size(RolloutConfig(gpus_per_worker=4, tensor_parallel=2))
    with pytest.raises(BadInput, match="whole number"):
        tensor_parallel_size(RolloutConfig(gpus_per_worker=1.5))


def test_log_probabilities_are_those_that_were_sampled_from():
    assert arguments()["logprobs_mode"] == "processed_logprobs"


def test_user_arguments_come_last():
    assert arguments(engine={"kv_cache_memory_bytes": 5})["kv_cache_memory_bytes"] == 5


def test_an_engine_takes_its_share_of_a_gpu():
    assert gpu_arguments(RolloutConfig(), 0) == {}
    assert gpu_share(RolloutConfig(gpus_per_worker=0.5), 0, 80e9) == pytest.approx(0.45)
    assert gpu_share(RolloutConfig(gpus_per_worker=2), 0, 80e9) == pytest.approx(0.9)
    assert 0.8 < gpu_share(RolloutConfig(gpus_per_worker=1), 4, 24e9) < 0.9, "less the contexts of others"


def test_our_arguments_exist_in_the_installed_vllm():
    from rlhf_ray.config.passthrough import engine_argument_names

    assert arguments().keys() | arguments(gpus_per_worker=1).keys() <= engine_argument_names()


def test_engines_are_bound_to_different_cpus_in_turn():
    rollout = RolloutConfig(threads=2)
    assert worker_cpus(rollout, 0, [4, 5, 6, 7]) == [[4, 5]]
    assert worker_cpus(rollout, 1, [4, 5, 6, 7]) == [[6, 7]]
    assert worker_cpus(rollout, 2, [4, 5, 6, 7]) == [[4, 5]]
    assert worker_cpus(RolloutConfig(tensor_parallel=2), 0, [0, 1]) == [[0], [1]]
    assert worker_cpus(RolloutConfig(threads=8), 0, [0, 1]) == [[0, 1]]


def test_bindings_reach_vllm_in_its_own_words():
    def environment(**rollout: object) -> dict[str, str]:
        return engine_environment(RolloutConfig(**rollout), transport="gloo", index=0, cpus=[0, 1])

    assert environment()["OMP_PLACES"] == "{0}"
    assert environment(tensor_parallel=2)["VLLM_CPU_OMP_THREADS_BIND"] == "0|1"
    assert "OMP_PLACES" not in environment(tensor_parallel=2)
    assert "VLLM_CPU_OMP_THREADS_BIND" not in environment(gpus_per_worker=1)
