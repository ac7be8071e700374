"""`rlhf plot`: curves and report of finished or running runs."""

from pydantic import Field

from rlhf_ray.config.base import Section
from rlhf_ray.config.paths import PathText


class PlotConfig(Section):
    """Redraw the curves and the report of a run folder; several folders are laid over one another."""

    runs: list[PathText] = Field(min_length=1)
    """Run folders, or other folders with a metrics.jsonl."""

    output: PathText | None = None
    """Folder to draw into. None: the run's own; for several runs, `comparison` beside the first."""
