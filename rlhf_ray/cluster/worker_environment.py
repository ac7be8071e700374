"""Environment variables that a worker starts with: the devices that it sees, its threads, what makes it repeatable."""

import os

# Thread counts of all the libraries that a worker computes with; each reads only its own.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
CPU_THREADS = 1
"""Threads of a worker on CPU, unless its placement says more."""


def worker_environment(device_ids: list[str], threads: int | None, one_node: bool) -> dict[str, str]:
    """Return the environment variables of one worker.

    Args:
        device_ids: CUDA devices that it sees, as the node numbers them; none on CPU.
        threads: compute threads; None: 1 on CPU, the libraries' choice on GPU.
        one_node: all workers of the run are on one node, so that collectives can use its loopback interface.
    """
    variables = {
        # Several roles may share a device, which Ray's own accounting cannot express for whole GPUs: the devices were
        # chosen from those of the placement group, and Ray must leave the choice alone.
        "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "CUDA_VISIBLE_DEVICES": ",".join(device_ids),
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "PYTHONHASHSEED": "0",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if not device_ids:
        variables["DS_ACCELERATOR"] = "cpu"
        threads = threads or CPU_THREADS
    elif not threads:
        # Where it is not set, Ray writes 1; our package takes it away again before a library reads it.
        variables["OMP_NUM_THREADS"] = ""
    if threads:
        variables |= dict.fromkeys(THREAD_VARIABLES, str(threads))
    if one_node and "GLOO_SOCKET_IFNAME" not in os.environ:
        # Gloo otherwise resolves the host's name, which fails on machines without a network.
        variables["GLOO_SOCKET_IFNAME"] = "lo"
    return variables
