"""`make lint` finds code that nothing calls (vulture); here, that what is excused from it still needs its excuse."""

import tomllib
from pathlib import Path

from vulture import Vulture

ROOT = Path(__file__).parents[1]


def test_every_excuse_is_needed() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["vulture"]
    checker = Vulture(ignore_decorators=settings["ignore_decorators"])
    checker.scavenge([ROOT / path for path in settings["paths"]])
    unused, excused = {item.name for item in checker.get_unused_code()}, settings["ignore_names"]
    assert sorted(set(excused) - unused) == []
    assert sorted(unused - set(excused)) == []
