"""Environment variables that a job gives its workers, and which of them are not the user's to set."""

import re
from collections.abc import Iterator, Mapping
from typing import Annotated

from pydantic import AfterValidator, Field

from rlhf_ray.config.base import Section
from rlhf_ray.config.reading.documents import KeyPath, Problem
from rlhf_ray.config.secret_variables import SecretVariable
from rlhf_ray.redaction.values import is_secret_name

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

THREADS = "`threads` of the role"
PROCESS_GROUP = "the ranks' own meeting"

OWNED_VARIABLES: Mapping[str, str] = {
    "CUDA_VISIBLE_DEVICES": "`gpus_per_worker` and the groups",
    "NVIDIA_VISIBLE_DEVICES": "`gpus_per_worker` and the groups",
    "DS_ACCELERATOR": "`gpus_per_worker`",
    "OMP_NUM_THREADS": THREADS,
    "MKL_NUM_THREADS": THREADS,
    "OPENBLAS_NUM_THREADS": THREADS,
    "NUMEXPR_NUM_THREADS": THREADS,
    "OMP_PLACES": THREADS,
    "OMP_PROC_BIND": THREADS,
    "VLLM_CPU_OMP_THREADS_BIND": THREADS,
    "VLLM_CPU_KVCACHE_SPACE": "`rollout.engine.kv_cache_memory_bytes`",
    "RANK": PROCESS_GROUP,
    "WORLD_SIZE": PROCESS_GROUP,
    "LOCAL_RANK": PROCESS_GROUP,
    "MASTER_ADDR": PROCESS_GROUP,
    "MASTER_PORT": PROCESS_GROUP,
    "VLLM_ENGINE_READY_TIMEOUT_S": "`cluster.deadlines.load_seconds`",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "the engine",
    "VLLM_ALLOW_INSECURE_SERIALIZATION": "`rollout.transport`",
    "VLLM_PLUGINS": "the engine, which loads the transfer of weights as a plugin",
    "PYTHONHASHSEED": "`seed`",
    "CUBLAS_WORKSPACE_CONFIG": "the job, for results that can be repeated",
    "TOKENIZERS_PARALLELISM": "the job",
}
"""Variables that a job sets itself, or that would contradict what it sets, with what sets them."""

OWNED_PREFIXES: Mapping[str, str] = {"RAY_": "Ray and `cluster`", "RLHF_": "the job"}

CRITICS = ("critic", "cost_critic")
"""Names under which the models of `critics` run."""


def _is_name(name: str) -> str:
    if _NAME.fullmatch(name) is None:
        raise ValueError(f"is no name of an environment variable: {name[:80]!r}")
    return name


Variables = dict[Annotated[str, AfterValidator(_is_name)], Annotated[str, Field(min_length=0)]]


class EnvironmentConfig(Section):
    """Environment variables of the workers: of networks, allocators and libraries, such as NCCL_SOCKET_IFNAME,
    NCCL_IB_HCA, FI_PROVIDER, NCCL_DEBUG or PYTORCH_CUDA_ALLOC_CONF. What a worker starts, such as the processes of a
    vLLM engine, has them too."""

    all: Variables = Field(default_factory=dict)
    """Of all roles."""

    roles: dict[str, Variables] = Field(default_factory=dict)
    """Of one role, by the key of its section, such as `policy`, `critics` or `rollout`; they win over those of all."""

    secrets: list[SecretVariable] = Field(default_factory=list)
    """Names of variables with secret values, to be set where the workers run, from which they inherit them. What a run
    writes has no such value. Names such as HF_TOKEN or WANDB_API_KEY tell by themselves."""

    def of(self, role: str) -> dict[str, str]:
        """Return the variables of a role, by the name that it has in a run."""
        section = "critics" if role in CRITICS else role.partition(".")[0]
        return {**self.all, **self.roles.get(section, {})}

    def problems(self, sections: set[str]) -> Iterator[Problem]:
        """Find variables that the job sets itself, secrets, and roles that are none of `sections`."""
        for role in self.roles:
            if role not in sections:
                known = ", ".join(sorted(sections)) or "none"
                yield Problem(("roles", role), f"the job has no role of this name (roles: {known})")
        for key, variables in ((("all",), self.all), *((("roles", role), own) for role, own in self.roles.items())):
            for name in variables:
                yield from _problems((*key, name), name)


def _problems(key: KeyPath, name: str) -> Iterator[Problem]:
    owner = OWNED_VARIABLES.get(name) or next(
        (owner for prefix, owner in OWNED_PREFIXES.items() if name.startswith(prefix)), None
    )
    if owner is not None:
        yield Problem(key, f"is set by {owner}")
    elif is_secret_name(name):
        yield Problem(
            key,
            "is a secret by its name, and configs are copied into run folders; set it where the workers run, which "
            "inherit it",
        )
