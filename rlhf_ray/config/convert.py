"""`rlhf convert`: data sets of other layouts as rows of this project's."""

from pydantic import Field

from rlhf_ray.config.base import Section
from rlhf_ray.config.data import Layout
from rlhf_ray.config.numbers import Share
from rlhf_ray.config.paths import PathText


class ConvertConfig(Section):
    """Read data sets in any layout that is known and write their rows in this project's columns, which are TRL's."""

    data: list[PathText] = Field(min_length=1)
    """Files, globs, directories or hub names."""

    output: PathText
    """File to write: .jsonl, .parquet, or .tsv for rank lists, which hold no prompts of their own and no ties."""

    layout: Layout = "auto"
    """How rows are written; auto knows it by each row's columns."""

    split: str = "train"
    """Split of a hub data set."""

    bad_rows: Share = 0.01
    """Share of rows that may be unusable; they are counted and shown. Past it nothing is written."""
