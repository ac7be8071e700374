"""What `make gpu-test` looks at, part by part, in this order: cheap ones first, and trainers before engines."""

from dataclasses import dataclass, field

TRAINING = "tests/gpu/test_training_gpu.py"
TRANSFER = "tests/gpu/test_transfer.py"


@dataclass(frozen=True)
class Part:
    """One part; it runs in a process of its own."""

    name: str
    what: str
    """What it shows."""
    function: str = ""
    """`module:function` in this folder, which takes the folder of the results and returns figures by name."""
    tests: tuple[str, ...] = ()
    """Or tests of pytest that must pass."""
    needs: tuple[str, ...] = ("torch",)
    """Modules without which it is skipped."""
    gpus: int = 1
    seconds: float = 120
    """After which it is ended."""
    aims: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Least and largest value that a figure may have for the part to pass."""
    rehearsal: str = ""
    """`module:function` that a dry run calls with an empty folder, beside reading the source."""
    code: tuple[str, ...] = ()
    """Modules of the product whose calls a dry run checks too."""

    @property
    def modules(self) -> tuple[str, ...]:
        """All modules whose calls belong to the part."""
        own = [f"benchmarks.gpu.{self.function.partition(':')[0]}"] if self.function else []
        tests = (test.partition("::")[0].removesuffix(".py").replace("/", ".") for test in self.tests)
        return (*own, *dict.fromkeys(tests), *self.code)


INFINITE = float("inf")
RANKS = tuple(f"rlhf_ray.{name}" for name in ("training.rank", "training.process", "models.device_memory"))
ENGINES = ("rlhf_ray.rollout.engine", "rlhf_ray.rollout.engine_arguments")
WIRES = tuple(f"rlhf_ray.transfer.{name}" for name in ("sender", "ipc", "meeting", "vllm_adapter"))
VLLM = ("torch", "vllm")

PARTS = (
    Part("install", "versions are those of requirements/gpu.txt, and torch computes on the GPU", "trainer:install"),
    Part(
        "head",
        "chunked log-probabilities and entropy against float32, their memory and time against the plain way",
        "trainer:head",
        aims={"largest_difference": (0, 0.05), "memory_of_plain": (0, 0.5)},
    ),
    Part(
        "ranks", "training in bfloat16 at every ZeRO stage, sleep and wake bit for bit", tests=(TRAINING,), code=RANKS
    ),
    Part(
        "logprobs",
        "bfloat16 log-probabilities of each attention and layout against float32",
        "trainer:logprobs",
        aims={"worst_of_allowed": (0, 1)},
    ),
    Part(
        "train",
        "share of the GPU's peak in a training step (MFU)",
        "trainer:train",
        aims={"mfu": (0.45, 1)},
        code=RANKS,
    ),
    Part(
        "engine",
        "an engine starts, answers, and holds what it should",
        "engine:start",
        needs=VLLM,
        aims={"finished": (8, 8)},
        rehearsal="engine:rehearse",
        code=ENGINES,
    ),
    Part(
        "placement",
        "workers compute on the GPU that the placement chose, and on no other",
        tests=("tests/gpu/test_cluster.py",),
        needs=("torch", "ray"),
    ),
    Part(
        "ipc",
        "weights over CUDA IPC, compared bit by bit, at each sleep level",
        tests=(
            f"{TRANSFER}::test_engine_on_the_trainers_gpu_follows_it_over_ipc",
            f"{TRANSFER}::test_compiled_engine_computes_with_new_weights",
        ),
        needs=VLLM,
        seconds=300,
        code=(*ENGINES, *WIRES),
    ),
    Part(
        "nccl",
        "weights over NCCL, likewise; NCCL takes no two ranks on one GPU",
        tests=(f"{TRANSFER}::test_engine_on_another_gpu_follows_over_nccl",),
        needs=VLLM,
        gpus=2,
        seconds=180,
        code=WIRES,
    ),
    Part(
        "sleep",
        "bytes on the GPU after each sleep and wake of an engine",
        "engine:sleep_cycles",
        needs=VLLM,
        seconds=180,
        aims={"growth_gib": (-INFINITE, 0.25), "asleep_share": (0, 0.3)},
    ),
    Part(
        "decode",
        "share of the limit that memory bandwidth sets to writing",
        "engine:decode",
        needs=VLLM,
        seconds=180,
        aims={"share_of_bytes_limit": (0.6, 1)},
    ),
    Part(
        "sync",
        "a weight sync against a copy of the same bytes on the device",
        "engine:sync",
        needs=VLLM,
        seconds=180,
        code=WIRES,
    ),
    Part(
        "ppo",
        "20 steps of PPO whose roles share the GPU, on random weights of 0.5B; share of the plan's floor",
        "run:ppo",
        needs=("torch", "vllm", "ray"),
        seconds=420,
        aims={"steps": (20, 20), "share_of_floor": (0.35, 1)},
        rehearsal="run:rehearse",
    ),
)
