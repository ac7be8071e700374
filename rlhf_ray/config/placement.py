"""Where roles run, and when: named groups of nodes, what each worker of a role takes of its group, and phases."""

from collections.abc import Mapping
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from rlhf_ray.config.base import Section
from rlhf_ray.config.numbers import CPUs, GPUs, Seconds, Workers

GENERATE, SCORE, TRAIN, SYNC = "generate", "score", "train", "sync"
LOGPROBS = "log-probabilities"
"""Names of the phases in which roles work."""

Phases = Mapping[str, tuple[str, ...]]
"""Sections of the config whose roles are awake, by phase."""


class GroupConfig(Section):
    """A named set of equal nodes; becomes one Ray placement group with a bundle for each node."""

    nodes: Workers = 1
    """Number of machines."""

    gpus_per_node: GPUs = 0
    """GPUs that the run takes of each machine."""

    cpus_per_node: CPUs = 2
    """Logical CPUs that the run takes of each machine."""


class PlacementConfig(Section):
    """Place of a role: how many workers it has, on which group, and what each takes there."""

    on: str = "main"
    """Name of the group that hosts this role. Roles on one group share its devices."""

    workers: Workers = 1
    """Number of workers: ranks of a trained model, engines of the rollout, copies of a scorer."""

    gpus_per_worker: GPUs = 0
    """GPUs of each worker; 0 runs on CPU, a fraction shares a GPU. For an engine, its tensor-parallel size."""

    cpus_per_worker: CPUs = 0.25
    """Logical CPUs that Ray reserves for each worker."""

    threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Compute threads of each worker (OMP, torch, vLLM binding). None: 1 on CPU, the library's choice on GPU. On
    CPU, policy, reference and critics that compute side by side share the CPUs there are."""


LEAST_LOAD_SECONDS = 600.0
"""For imports, an engine's warm-up and its compilations, whatever the model."""

SLOWEST_STORAGE = 50e6
"""Bytes a second that a model is read with at worst: a shared disk under load, or a download."""

LEAST_TRANSFER_SECONDS = 300.0
"""For a transfer group to meet and to make its connections."""

SLOWEST_NETWORK = 250e6
"""Bytes a second that weights travel with at worst, gathered and loaded on the way."""


class DeadlineConfig(Section):
    """Seconds that the driver waits before an error names the role, the rank and the phase."""

    start_seconds: Seconds = 600
    """For resources to become free, for Ray to start, and for a machine to take a lost one's place."""

    load_seconds: Seconds | None = None
    """For a role to load its model, until all its ranks and engines can work. None: 600, and a second more for each
    50 MB of weights, which slow storage and the hub still give."""

    join_seconds: Seconds = 600
    """For the ranks of a role to meet, before they load."""

    collective_seconds: Seconds = 600
    """For one collective of a role's ranks (NCCL, gloo) once all have loaded: the longest that one may be behind."""

    call_seconds: Seconds = 1800
    """For one remote call of a phase (generation of a batch, scoring, one optimizer step)."""

    transfer_seconds: Seconds | None = None
    """For the rendezvous of a transfer group, and for one weight transfer. None: 300, and a second more for each 250 MB
    of weights, which a network of 2 Gbit/s still moves."""

    def loading(self, weight_bytes: int) -> float:
        """Return the seconds for a role to load weights of that size."""
        return self.load_seconds or LEAST_LOAD_SECONDS + weight_bytes / SLOWEST_STORAGE

    def transfer(self, weight_bytes: int) -> float:
        """Return the seconds for weights of that size to reach the engines."""
        return self.transfer_seconds or LEAST_TRANSFER_SECONDS + weight_bytes / SLOWEST_NETWORK


ADDRESS_FORMS = (
    "must be host:port as `ray start --head` printed it, such as 10.0.0.1:6379; ray://host:10001 for a Ray client; "
    "or auto for the cluster of this machine"
)


def host_and_port(address: str) -> tuple[str, int] | None:
    """Return where a Ray cluster is told to listen; None for a text that says no such place."""
    try:
        parts = urlsplit(address if "://" in address else f"ray://{address}")
        port = parts.port
    except ValueError:  # a port that is no number, or a bracket that is not closed
        return None
    if parts.scheme != "ray" or not parts.hostname or port is None:
        return None
    return parts.hostname, port


class ClusterConfig(Section):
    """Ray to use, and how long to wait for it."""

    address: Annotated[str, Field(min_length=0)] | None = None
    """Address of a running Ray cluster. None: the one the job was submitted to, or a new local one."""

    deadlines: DeadlineConfig = Field(default_factory=DeadlineConfig)
    """Deadlines of remote work."""

    @field_validator("address")
    @classmethod
    def _is_address(cls, address: str | None) -> str | None:
        # An empty one is none, as where a shell's variable is not set.
        if address and address != "auto" and host_and_port(address) is None:
            raise ValueError(f"{ADDRESS_FORMS}, not {address!r}")
        return address
