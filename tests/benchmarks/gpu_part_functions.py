"""Parts of a GPU run that end as their names say."""

import time
from pathlib import Path


def good(folder: Path) -> dict[str, float]:
    return {"share": 0.75}


def low(folder: Path) -> dict[str, float]:
    return {"share": 0.25}


def raises(folder: Path) -> dict[str, float]:
    raise ValueError("out of order")


def hangs(folder: Path) -> dict[str, float]:
    time.sleep(600)
    return {}
