"""Kinds of numbers that settings share. Each has both ends, so that none overflows, or is nothing, where it is used."""

from typing import Annotated, Any

from annotated_types import Ge, Gt, Le, Lt
from pydantic import AfterValidator, BeforeValidator, Strict

LARGEST_INTEGER = 2**31 - 1
"""What 32 bits hold: counts reach tensors, seeds reach NumPy."""
SMALLEST, LARGEST = 1e-12, 1e12
"""Ends of numbers that nothing narrower is known of. Beside them float32 loses the other term of any sum."""
RAY_PART = 0.0001
"""The smallest part of a device that Ray counts."""


def _matters(value: float) -> float:
    if 0 < value < SMALLEST:
        raise ValueError(f"is lost beside other numbers in float32; 0, or at least {SMALLEST:g}, not {value!r}")
    return value


def _counted_by_ray(value: float) -> float:
    if 0 < value < RAY_PART:
        raise ValueError(f"Ray counts in parts of {RAY_PART:g}; 0, or at least one part, not {value!r}")
    return value


PositiveInt = Annotated[int, Gt(0), Le(LARGEST_INTEGER)]
NonNegativeInt = Annotated[int, Ge(0), Le(LARGEST_INTEGER)]
PositiveFloat = Annotated[float, Gt(0), Le(LARGEST), AfterValidator(_matters)]
NonNegativeFloat = Annotated[float, Ge(0), Le(LARGEST), AfterValidator(_matters)]
AnyFloat = Annotated[float, Ge(-LARGEST), Le(LARGEST)]

Seed = Annotated[int, Ge(0), Le(LARGEST_INTEGER)]
Share = Annotated[float, Ge(0), Le(1)]
Decay = Annotated[float, Ge(0), Lt(1)]
Tokens = Annotated[int, Gt(0), Le(10**7)]
"""Length of a text or of a batch of texts; no context is longer."""
LearningRate = Annotated[float, Ge(0), Le(1)]
Temperature = Annotated[float, Ge(0.01), Le(100)]
"""vLLM raises what is below 0.01 to it, so that the trainer would score another distribution."""
Samples = Annotated[int, Gt(0), Le(16384)]
"""Responses to one prompt, vLLM's VLLM_MAX_N_SEQUENCES."""
Seconds = Annotated[float, Ge(0.001), Le(2_000_000)]
"""A deadline. Sockets and polls count milliseconds in 32 bits, which is 24 days."""
Retries = Annotated[int, Ge(0), Le(1000)]
Workers = Annotated[int, Gt(0), Le(100_000)]
"""Processes or machines."""
CPUs = Annotated[float, Ge(RAY_PART), Le(100_000)]
GPUs = Annotated[float, Ge(0), Le(100_000), AfterValidator(_counted_by_ray)]

WrittenAsList = Strict(False)
"""Marks a tuple, which a YAML file writes as a list; its members stay strict."""


def _is_integer(value: Any) -> Any:
    if isinstance(value, bool | float):
        raise ValueError(f"is an integer, not {value!r}")
    return value


OfIntegers = BeforeValidator(_is_integer)
"""Marks a choice between integers: to Python, and so to pydantic, false is 0 and 1.0 is 1."""
