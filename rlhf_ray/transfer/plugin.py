"""Entry point that every vLLM process calls (`vllm.general_plugins`): makes our transfer back ends known there."""

import threading

BACKENDS = {
    "rlhf_gloo": "GlooWeightTransferEngine",
    "rlhf_nccl": "NcclWeightTransferEngine",
    "rlhf_ipc": "IpcWeightTransferEngine",
}


def register() -> None:
    """Register the back ends by name; they are imported when used. May be called any number of times."""
    from tqdm import tqdm

    from rlhf_ray.transfer.vllm_adapter import register_backends

    # The bar of vLLM's loader would make a lock for several processes: in a spawned process that is a file in /dev/shm,
    # which stays there when the process is killed. A vLLM process shares its bars with no other one.
    tqdm.set_lock(threading.RLock())
    register_backends(BACKENDS)
