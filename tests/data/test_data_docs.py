"""docs/data.md tells every column that the jobs read."""

from pathlib import Path

import pytest

from rlhf_ray.data.columns import RANKING_COLUMNS

DOCS = Path(__file__).parents[2] / "docs" / "data.md"


@pytest.mark.parametrize("column", sorted(RANKING_COLUMNS))
def test_columns_of_rankings_are_told(column: str) -> None:
    assert f"`{column}`" in DOCS.read_text(encoding="utf-8")
