"""Parts that need torch and DeepSpeed alone."""

import importlib.metadata
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.gpu.machine import peaks_of
from benchmarks.gpu.model import HIDDEN, VOCABULARY, half_billion
from rlhf_ray.algorithms.losses import NegativeLogLikelihood
from rlhf_ray.cluster.endpoint import free_port
from rlhf_ray.config.model import Attention, Dtype, ModelConfig
from rlhf_ray.config.training import TrainerConfig
from rlhf_ray.data.batches import TokenBatch
from rlhf_ray.jobs.plan.floors import BACKWARD, FORWARD
from rlhf_ray.models.logit_size import measured_logits
from rlhf_ray.models.logprobs import chunked_logprobs
from rlhf_ray.training.rank import TrainerRank
from rlhf_ray.transfer.verification import Tolerance

REQUIREMENTS = Path(__file__).parents[2] / "requirements" / "gpu.txt"
HEAD_TOKENS = 8192
ROWS, ROW_TOKENS = 16, 1024
REPEATS = 5


def install(folder: Path) -> dict[str, float]:
    """Compare installed versions with the list; those that are missing are counted, others must be equal."""
    pinned = [line.split("==") for line in REQUIREMENTS.read_text().splitlines() if "==" in line]
    missing, wrong = 0, []
    for name, version in pinned:
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            missing += 1
            continue
        if found.partition("+")[0] != version.strip():
            wrong.append(f"{name} {found} instead of {version.strip()}")
    print(*(wrong or ["all versions that are installed are those of the list"]), sep="\n")
    square = torch.ones(1024, 1024, device="cuda", dtype=torch.bfloat16)
    assert float((square @ square).mean()) == 1024
    print(torch.cuda.get_device_name(0), torch.version.cuda, torch.cuda.nccl.version())
    return {"pinned": len(pinned), "missing": missing, "other_versions": len(wrong)}


def head(folder: Path) -> dict[str, float]:
    """Compare the head in bfloat16 with float32 numbers, and its time and memory with logits of all tokens at once."""
    torch.manual_seed(0)
    hidden = torch.randn(HEAD_TOKENS, HIDDEN, device="cuda", dtype=torch.bfloat16).requires_grad_()
    weight = (torch.randn(VOCABULARY, HIDDEN, device="cuda") / HIDDEN**0.5).bfloat16().requires_grad_()
    targets = torch.randint(VOCABULARY, (HEAD_TOKENS,), device="cuda")

    def chunked() -> torch.Tensor:
        logprobs, entropy = chunked_logprobs(hidden, weight, targets, need_entropy=True)
        assert entropy is not None
        return logprobs + entropy

    def plain() -> torch.Tensor:
        distribution = torch.log_softmax((hidden @ weight.T).float(), dim=-1)
        return distribution.gather(1, targets[:, None])[:, 0] - (distribution.exp() * distribution).sum(-1)

    with torch.no_grad():
        exact = torch.log_softmax(hidden[:512].float() @ weight.float().T, dim=-1)
        wanted = exact.gather(1, targets[:512, None])[:, 0] - (exact.exp() * exact).sum(-1)
        difference = float((chunked()[:512] - wanted).abs().max())
        del exact
    own, other = _passes(chunked, [hidden, weight]), _passes(plain, [hidden, weight])
    return {
        "largest_difference": difference,
        "seconds": own[0],
        "gib": own[1],
        "seconds_of_plain": own[0] / other[0],
        "memory_of_plain": own[1] / other[1],
    }


def _passes(forward: Callable[[], torch.Tensor], leaves: list[torch.Tensor]) -> tuple[float, float]:
    """Return median seconds and peak GiB, above what was there, of a forward and backward pass."""
    seconds, peak = [], 0
    for _ in range(REPEATS + 1):
        for leaf in leaves:
            leaf.grad = None
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        torch.cuda.synchronize()
        started = time.perf_counter()
        forward().sum().backward()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
        peak = max(peak, torch.cuda.max_memory_allocated() - before)
    return statistics.median(seconds[1:]), peak / 2**30


def _rank(folder: Path, dtype: Dtype, attention: Attention, trainable: bool) -> TrainerRank:
    return TrainerRank(
        "policy",
        ModelConfig(path=str(half_billion(folder)), dtype=dtype, attention=attention),
        TrainerConfig(gpus_per_worker=1),
        total_steps=100,
        seed=0,
        master=("127.0.0.1", free_port()),
        trainable=trainable,
    )


def _batch(rows: int, low: int, high: int) -> TokenBatch:
    generator = np.random.default_rng(0)
    sizes = generator.integers(low, high + 1, rows)
    prompts = [generator.integers(5, VOCABULARY, 16).astype(np.int32) for _ in range(rows)]
    responses = [generator.integers(5, VOCABULARY, size - 16).astype(np.int32) for size in sizes]
    return TokenBatch.from_sequences(prompts, responses)


def logprobs(folder: Path) -> dict[str, float]:
    """Read rows of many lengths by each attention that is installed; differences as shares of a sync's bounds."""
    batch = _batch(ROWS, 20, 600)
    rows = [np.arange(0, ROWS, 2), np.arange(1, ROWS, 2)]
    exact = _rank(folder, "float32", "eager", trainable=False)
    with measured_logits(exact.network.get_output_embeddings()) as size:
        wanted = exact.logprobs(batch, rows)["logprobs"]
    allowed = Tolerance.of("bfloat16", size)
    figures: dict[str, float] = {}
    attentions: list[Attention] = ["sdpa"]
    try:
        importlib.metadata.version("flash_attn")
        attentions.append("flash_attention_2")
    except importlib.metadata.PackageNotFoundError:
        print("flash_attn is not installed: packed rows are not looked at")
    for attention in attentions:
        found = _rank(folder, "bfloat16", attention, trainable=False).logprobs(batch, rows)["logprobs"]
        differences = np.abs(found - wanted)
        figures[f"{attention}_largest"], figures[f"{attention}_mean"] = differences.max(), differences.mean()
        shares = differences.max() / allowed.largest, differences.mean() / allowed.mean
        figures["worst_of_allowed"] = max(figures.get("worst_of_allowed", 0.0), *shares)
    return figures


def train(folder: Path) -> dict[str, float]:
    """Make optimizer steps on full rows; MFU counts 6 operations for each parameter and token, attention's own not."""
    rank = _rank(folder, "bfloat16", "sdpa", trainable=True)
    batch = _batch(ROWS, ROW_TOKENS, ROW_TOKENS)
    rows = [np.arange(first, first + 8) for first in range(0, ROWS, 8)]
    tokens = int(batch.response_lengths.sum())
    columns = {"weight": np.full(tokens, 1 / tokens, np.float32)}
    seconds, losses = [], []
    for _ in range(REPEATS + 2):
        torch.cuda.synchronize()
        started = time.perf_counter()
        losses.append(rank.train_step(batch, rows, NegativeLogLikelihood(), columns)["loss"])
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    assert losses[-1] < losses[0], f"the loss does not fall: {losses}"
    step = statistics.median(seconds[2:])
    parameters = sum(parameter.numel() for parameter in rank.network.parameters())
    operations = (FORWARD + BACKWARD) * parameters * ROWS * ROW_TOKENS
    peak = peaks_of(torch.cuda.get_device_name(0)).tflops * 1e12
    return {
        "step_seconds": step,
        "tokens_per_second": ROWS * ROW_TOKENS / step,
        "gib": torch.cuda.max_memory_allocated() / 2**30,
        "mfu": operations / step / peak,
    }
