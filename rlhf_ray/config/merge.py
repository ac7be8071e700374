"""`rlhf merge`: an adapter and its model as one model directory."""

from rlhf_ray.config.base import Section
from rlhf_ray.config.model import Dtype
from rlhf_ray.config.paths import OnePath, PathText


class MergeConfig(Section):
    """Add an adapter to its model's weights and write them as a model directory."""

    adapter: OnePath
    """Directory of the adapter, such as `final` of a run with lora."""

    output: PathText
    """Directory to write."""

    base: PathText | None = None
    """Model directory or hub name. None: the one that the adapter names."""

    dtype: Dtype | None = None
    """Type of the written weights. None: that of the model's files."""

    trust_remote_code: bool = False
    """Run Python code that comes with the model."""
