"""The online preference loop in small, in this process, without Ray."""

import copy
from pathlib import Path
from typing import Any

from examples.online_preferences.page import RunningPage
from examples.online_preferences.roles import Roles
from examples.online_preferences.run import Run
from examples.online_preferences.settings import Settings
from rlhf_ray.checkpoint.checkpoints import Checkpoints
from rlhf_ray.cluster.errors import RoleDied
from rlhf_ray.runs.recovery import run_through_deaths
from rlhf_ray.runs.stopping import StopRequest
from rlhf_ray.tracking.history import History
from rlhf_ray.tracking.records import METRICS_FILE, RecordFile

SMALL = {"rounds": 4, "episodes": 2, "comparisons": 16, "fit_steps": 2, "evaluation_episodes": 2, "evaluate_every": 2}


class RolesHere(Roles):
    """The roles in this process, one after the other; as through Ray, what one gives away is a copy."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._groups = {name: kind(**arguments) for name, (kind, arguments) in self._kinds().items()}
        self.dies_at: list[tuple[str, int]] = []

    def _together(self, phase: str, *calls: tuple[Any, ...]) -> list[Any]:
        for role, method, *arguments in calls:
            if method == "train" and self.dies_at and self.dies_at[0] == (role, arguments[0]):
                self.dies_at.pop(0)
                raise RoleDied(f"{role} rank 0 died", role, 0, phase)
        given = [copy.deepcopy(call) for call in calls]
        return copy.deepcopy([getattr(self._groups[role], method)(*rest) for role, method, *rest in given])

    def start_again(self, dead: str) -> None:
        self._groups = {name: kind(**arguments) for name, (kind, arguments) in self._kinds().items()}


class Records:
    """A tracker that draws nothing."""

    def __init__(self, folder: Path, run_id: str) -> None:
        self.run_id = run_id
        self._file = RecordFile(folder / METRICS_FILE)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self._file.append({"step": step, **metrics})

    def truncate_after(self, step: int) -> None:
        self._file.truncate_after(step)

    def message(self, text: str) -> None:
        assert "start again" in text

    def progress(self, step: int, part: str) -> None:
        assert part == "idle"


class Stop(StopRequest):
    """Asks to stop once it was looked at so often."""

    def __init__(self, looks: int | None) -> None:
        super().__init__()
        self.looks = looks

    def __bool__(self) -> bool:
        if self.looks is not None:
            self.looks -= 1
        return self.looks is not None and self.looks < 0


def settings_in(folder: Path, **more: Any) -> Settings:
    settings = Settings.model_validate({"output": str(folder), "seeds": [3], **SMALL, **more})
    return settings.one(settings.rewards[-1], 3)


def run_here(
    settings: Settings,
    looks: int | None = None,
    deaths: list[tuple[str, int]] | None = None,
    page: RunningPage | None = None,
) -> bool:
    folder = Path(settings.output)
    checkpoints = Checkpoints(str(folder / "checkpoints"), 2)
    roles = RolesHere(settings)
    roles.dies_at = list(deaths or [])
    run = Run(settings, roles, checkpoints, Records(folder, "run"), Stop(looks), page)  # type: ignore[arg-type]
    return run_through_deaths(run.begin, run.go_on, run.recover, ["acting", "predicting", "comparing"])


def series_of(settings: Settings) -> dict[str, list[float]]:
    found = History.read(Path(settings.output)).series
    return {name: series.values for name, series in found.items() if name != "step_time"}
