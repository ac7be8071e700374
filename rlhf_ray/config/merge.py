"""`rlhf merge`: an adapter and its model as one model directory."""

from typing import Annotated, Any

from pydantic import BeforeValidator

from rlhf_ray.config.base import Section
from rlhf_ray.config.model import Dtype
from rlhf_ray.config.paths import PathText


def _only(value: Any) -> Any:
    """The one of a list of one."""
    if isinstance(value, list) and len(value) != 1:
        raise ValueError(f"one adapter at a time, not {len(value)}")
    return value[0] if isinstance(value, list) else value


class MergeConfig(Section):
    """Add an adapter to its model's weights and write them as a model directory."""

    adapter: Annotated[PathText, BeforeValidator(_only)]
    """Directory of the adapter, such as `final` of a run with lora."""

    output: PathText
    """Directory to write."""

    base: PathText | None = None
    """Model directory or hub name. None: the one that the adapter names."""

    dtype: Dtype | None = None
    """Type of the written weights. None: that of the model's files."""

    trust_remote_code: bool = False
    """Run Python code that comes with the model."""
