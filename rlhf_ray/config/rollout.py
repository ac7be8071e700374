"""The vLLM engines that write samples, and the transfer of weights to them."""

from typing import Annotated, Any, Literal

from pydantic import Field

from rlhf_ray.config.numbers import PositiveFloat, Temperature, Tokens
from rlhf_ray.config.paths import PathText
from rlhf_ray.config.placement import PlacementConfig


class RolloutConfig(PlacementConfig):
    """vLLM engines, one a worker."""

    temperature: Temperature = 1.0
    """Sampling temperature; applied on the trainer's log-probabilities too."""

    max_new_tokens: Tokens = 256
    """Longest response."""

    stop: list[str] = Field(default_factory=list)
    """Texts that end a response, besides the tokenizer's end-of-sequence token and what ends a turn of its chat
    template."""

    skip_special_tokens: bool = False
    """Leave all special tokens out of the texts that rewards read, `<think>` and the marks of tools too where the
    tokenizer calls them special. false: only those that end a turn or pad."""

    tensor_parallel: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Tensor-parallel size of a CPU engine; on GPU it is gpus_per_worker."""

    engine: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of vLLM's AsyncEngineArgs, checked against its own list."""

    transport: Literal["auto", "gloo", "nccl", "ipc"] = "auto"
    """How weights travel. auto: gloo for CPU engines, ipc where engine and policy share GPUs, else nccl."""

    adapter: Literal["merged", "reload"] = "merged"
    """How a policy's adapter reaches the engines: merged into the weights that travel, or alone and loaded in place,
    which moves little but generates more slowly."""

    bucket_megabytes: float = Field(default=256, ge=0.001, le=1_000_000)
    """Weights are gathered and sent in buckets of this size."""

    sync_tolerance: PositiveFloat | None = None
    """Largest log-probability difference on the probe texts after a sync; the mean one may grow in proportion. None:
    what rounding explains at the measured size of the logits."""

    deterministic: bool = False
    """Queue a step's requests before any runs, so that equal seeds give equal samples; costs the overlap."""

    in_flight: bool = True
    """Whether engines take new weights while they write, and go on with them, each token keeping the version that wrote
    it; only with algorithm.max_staleness. false: what is under way is written to its end first, as in deterministic
    mode."""

    record: PathText | None = None
    """Write every sample to this file, for replay."""

    replay: PathText | None = None
    """Take samples from this file instead of generating."""
