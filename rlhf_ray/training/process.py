"""What a rank holds of its machine: a place in the process group, and CPU threads."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

import torch

from rlhf_ray.config.errors import RlhfError


class RendezvousFailed(RlhfError):
    """Not all ranks of a trained model met in time."""


def device_of(gpus_per_worker: float) -> torch.device:
    """Return the device that a rank computes on."""
    return torch.device("cuda", 0) if gpus_per_worker > 0 else torch.device("cpu")


@dataclass(frozen=True)
class RankDeadlines:
    """Seconds that a rank waits for the others of its role."""

    join: float = 600.0
    """To meet them."""
    load: float = 600.0
    """Until the last of them has loaded the model."""
    collective: float = 600.0
    """For each collective after that."""


def join(rank: int, world: int, master: tuple[str, int], device: torch.device, deadlines: RankDeadlines) -> None:
    """Meet the other ranks and make DeepSpeed use their process group.

    A process that is in a group of the same size already keeps it, so that several models of one rank can live in it.

    Args:
        rank: of this process.
        world: number of ranks.
        master: host and port where rank 0 listens.
        device: decides the back end: nccl or gloo.
        deadlines: of the meeting; collectives have that of loading until `limit_collectives`.

    Raises:
        RendezvousFailed: the others did not come in time, or the process is in another group.
    """
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    host, port = master
    # DeepSpeed reads these, and looks for an MPI launcher without them.
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK="0", MASTER_ADDR=host, MASTER_PORT=str(port))
    distributed = torch.distributed
    if distributed.is_initialized():
        if (distributed.get_rank(), distributed.get_world_size()) != (rank, world):
            raise RendezvousFailed(f"rank {rank} of {world}: this process belongs to another process group already")
        limit_collectives(deadlines.load)
    else:
        try:
            distributed.init_process_group(
                "nccl" if device.type == "cuda" else "gloo",
                store=distributed.TCPStore(
                    host, port, world, is_master=rank == 0, timeout=timedelta(seconds=deadlines.join)
                ),
                rank=rank,
                world_size=world,
                timeout=timedelta(seconds=deadlines.load),
            )
        except (RuntimeError, ValueError) as error:
            raise RendezvousFailed(
                f"rank {rank} of {world} did not meet the other ranks at {host}:{port} within {deadlines.join:g} s "
                f"(cluster.deadlines.join_seconds): {error}"
            ) from error
    import deepspeed

    # DeepSpeed would compile an operator here that only its inference calls. The compiler's lock is a plain file: a
    # process killed while it compiles leaves it behind, and each later one on that machine waits on it for ever.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(verbose=False)


def limit_collectives(seconds: float) -> None:
    """Give all process groups one deadline for each collective, those of DeepSpeed too, which take torch's own."""
    groups = torch.distributed.distributed_c10d
    for group in groups._world.pg_map:
        groups._set_pg_timeout(timedelta(seconds=seconds), group)


def wait_for_ranks(device: torch.device) -> None:
    """Return once all ranks have come here."""
    here = torch.zeros(1, device=device)
    torch.distributed.all_reduce(here)
    here.item()  # on a GPU this alone waits


@dataclass(frozen=True)
class ThreadDemand:
    """Compute threads that workers on a rank's machine ask for together, its own among them; 0 where it is alone."""

    inferring: int = 0
    """While networks make forward passes."""
    training: int = 0
    """While networks take optimizer steps."""


def part_of(cpus: int, own: int, together: int) -> int:
    """Return the threads of a worker that asks for `own` of them.

    The threads of one worker wait for each other many times in each layer. Where all workers ask for more threads than
    there are CPUs, each waits for what another one computes, and all are slower than with as many threads as CPUs.
    """
    return own if together <= cpus else max(1, own * cpus // together)


class Threads:
    """Sets torch's threads for what a rank on CPU does next; on GPU they stay as they are.

    Args:
        device: of the rank.
        own: threads that its role asks for.
        demand: who computes beside it.
    """

    def __init__(self, device: torch.device, own: int, demand: ThreadDemand) -> None:
        self._on_cpu = device.type == "cpu"
        cpus = len(os.sched_getaffinity(0))
        self.inferring = part_of(cpus, own, demand.inferring)
        self.training = part_of(cpus, own, demand.training)

    def infer(self) -> None:
        """Set the number of threads for forward passes."""
        self._set(self.inferring)

    def train(self) -> None:
        """Set the number of threads for an optimizer step."""
        self._set(self.training)

    def _set(self, count: int) -> None:
        if self._on_cpu:
            torch.set_num_threads(count)


def sum_over_ranks(device: torch.device, totals: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """Sum scalars by name over all ranks, in float64 on CPU and in float32 elsewhere."""
    stacked = torch.stack(
        [value.to(torch.float64 if device.type == "cpu" else torch.float32) for value in totals.values()]
    )
    if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        torch.distributed.all_reduce(stacked)
    return dict(zip(totals, stacked.tolist(), strict=True))
