"""One run from its beginning or its last checkpoint to its end: rounds, checkpoints, curves."""

import json
import os
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from examples.online_preferences.page import PageEnded, RunningPage, page_beside
from examples.online_preferences.roles import Roles, Round
from examples.online_preferences.run_name import refuse_other_store
from examples.online_preferences.settings import Settings
from rlhf_ray.checkpoint.checkpoints import Checkpoints
from rlhf_ray.cluster.connect import connect
from rlhf_ray.cluster.errors import RoleDied
from rlhf_ray.config.errors import BadInput, RlhfError
from rlhf_ray.jobs.people.page import open_door
from rlhf_ray.runs.folder import RunFolder
from rlhf_ray.runs.recovery import run_through_deaths
from rlhf_ray.runs.stopping import StopRequest
from rlhf_ray.tracking.records import replace_file
from rlhf_ray.tracking.tracker import Tracker

FIXED = ("task", "rewards", "judge", "rounds", "episodes", "comparisons", "first_share", "members", "fit_steps")
"""Settings of which a run has one value from beginning to end."""

RESULT_FILE = "result.json"
LAST_EVALUATIONS = 3
"""The return at the end is the mean of so many evaluations: the policy still moves."""

LOOK_SECONDS = 2.0
"""How often a run that waits looks for what people chose."""
MAY_WAIT = 0.1
"""Share of the comparisons so far that people may be behind before the policy waits for them."""


class WaitingForPeople(RlhfError):
    """People chose nothing for long; nothing is wrong, and the same command goes on."""

    exit_code = 3


class NothingDecided(RlhfError):
    """People were asked about as many pairs as the run has, and could tell nothing of any."""


def finished(settings: Settings) -> bool:
    """Tell whether a run was made before.

    Raises:
        BadInput: the folder has a run of other settings, no config of a run, or one that asks people in another store.
    """
    folder = RunFolder.of(settings)
    if folder.config_file.exists():
        kept = folder.written_config()
        now = settings.model_dump(mode="json")
        changed = [name for name in FIXED if kept.get(name) != now[name]]
        if changed:
            raise BadInput(
                f"output: {folder.path} has a run with another {', '.join(changed)}; choose another output, "
                "or remove that folder to begin anew"
            )
    if judged_by_people(settings):
        refuse_other_store(settings)
    return (folder.path / RESULT_FILE).exists()


def refuse_unusable(settings: Settings) -> None:
    """Refuse what would end a run that is still to be made at once, before anything starts or is written.

    Raises:
        BadInput: its folder cannot be written, or its page cannot be served.
    """
    folder = RunFolder.of(settings).path
    above = next(one for one in (folder, *folder.parents) if one.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise BadInput(f"output: cannot write to {folder}: {above} is no folder that can be written to")
    if judged_by_people(settings):
        with open_door(settings.page()):
            pass


def make_run(settings: Settings, stop: StopRequest) -> bool:
    """Make a run, or what is left of it. Returns whether it is at its end; a stop request saves and leaves before.

    Raises:
        WaitingForPeople: people chose nothing for `answer_minutes`; what there is was saved.
        PageEnded: they have no page to choose at; what there is was saved.
        NothingDecided: they could tell nothing of any pair.
        RlhfError: with what is wrong and what to do.
    """
    folder = RunFolder.open(settings)
    checkpoints = Checkpoints(str(folder.checkpoints), settings.checkpoint.keep)
    found = checkpoints.latest()
    run_id = None if found is None else found.state["run_id"]
    config = settings.model_dump(mode="json")
    with (
        page_beside(settings, folder.config_file) if judged_by_people(settings) else nullcontext() as page,
        connect(settings.cluster, settings.groups) as cluster,
        Tracker.open(
            folder.path, settings.tracking, config, run_id, total_steps=settings.rounds, notes=folder.notes
        ) as tracker,
    ):
        run = Run(settings, Roles(cluster, settings), checkpoints, tracker, stop, page)
        done = run_through_deaths(run.begin, run.go_on, run.recover, run.roles.names, lambda: tracker.last_step)
    if done:
        replace_file(folder.path / RESULT_FILE, (json.dumps(run.result(folder.path), indent=2) + "\n").encode())
    return done


def judged_by_people(settings: Settings) -> bool:
    """Tell whether a run asks people."""
    return settings.judge == "people" and settings.rewards == ["preferences"]


class Run:
    """The driver of one run."""

    def __init__(
        self,
        settings: Settings,
        roles: Roles,
        checkpoints: Checkpoints,
        tracker: Tracker,
        stop: StopRequest,
        page: RunningPage | None = None,
    ) -> None:
        self.roles = roles
        self._settings = settings
        self._checkpoints = checkpoints
        self._tracker = tracker
        self._stop = stop
        self._page = page

    def begin(self) -> Round:
        """Return the state after the newest checkpoint, or before the first round."""
        found = self._checkpoints.latest()
        if found is not None:
            self._tracker.truncate_after(found.step)
            return self.roles.restore(found)
        self._tracker.truncate_after(-1)
        return self.roles.first()

    def go_on(self, state: Round) -> bool:
        """Make all rounds that are left; tell whether the run came to its end.

        Raises:
            WaitingForPeople, PageEnded, NothingDecided: see `make_run`.
        """
        if state.number == 0:
            state = self._with_first_fit(state)
            self._tracker.log(0, state.metrics())
        while state.number < self._settings.rounds:
            state = self._with_answers(state)
            if self._stop:
                self._save(state)
                return False
            began = time.monotonic()
            state = self.roles.next(state)
            self._tracker.log(state.number, {**state.metrics(), "step_time": time.monotonic() - began})
            every = self._settings.checkpoint.every_steps
            if state.number == self._settings.rounds or (every and state.number % every == 0):
                self._save(state)
        return True

    def recover(self, _: Round | None, death: RoleDied) -> Round:
        """Start all roles again, and go back to the newest checkpoint."""
        self._tracker.message(f"{death}; all roles start again from the last checkpoint")
        self.roles.start_again(death.role)
        return self.begin()

    def _with_first_fit(self, state: Round) -> Round:
        if state.judged is None:
            return state
        state = self._with_answers(state)
        return state if self._stop else self.roles.fit_first(state)

    def _with_answers(self, state: Round) -> Round:
        """Wait until people are not too far behind what they were asked, and have decided something."""
        waiting = self._waiting(state)
        last, since = waiting, time.monotonic()
        while state.judged is not None and self._behind(state) and not self._stop:
            if waiting == 0:
                state = self._with_more_questions(state)
                waiting = self._waiting(state)
            if waiting != last:
                last, since = waiting, time.monotonic()
            self._look_at_page(state)
            if time.monotonic() - since > self._settings.answer_minutes * 60:
                self._save(state)
                raise WaitingForPeople(
                    f"nobody compared clips for {self._settings.answer_minutes:g} minutes, and {waiting} pairs wait; "
                    "the same command goes on"
                )
            self._tracker.progress(state.number + 1, "idle")
            time.sleep(LOOK_SECONDS)
            state = self.roles.look(state)
            waiting = self._waiting(state)
        return state

    def _with_more_questions(self, state: Round) -> Round:
        """Ask more where nothing waits and nothing is decided: whoever waited for people now would for ever."""
        assert state.judged is not None
        if state.judged.asked >= self._settings.comparisons:
            raise NothingDecided(
                f"nobody could tell which clip is better in any of {state.judged.asked} pairs, and the run may ask "
                "about no more; choose another output and more --comparisons"
            )
        return self.roles.ask_more(state)

    def _look_at_page(self, state: Round) -> None:
        """Do not wait for people who have no page."""
        code = None if self._page is None else self._page.exit_code()
        # Ctrl-C reaches the page as well; it is no fault of the page then.
        if code is not None and not self._stop:
            self._save(state)
            raise PageEnded(
                f"the page at which people compare clips ended with exit code {code}; what it said stands above, "
                "and the same command goes on"
            )

    def _waiting(self, state: Round) -> int:
        """Count the pairs that nobody has judged yet."""
        return 0 if state.judged is None else state.judged.waiting

    def _behind(self, state: Round) -> bool:
        judged = state.judged
        assert judged is not None
        return judged.comparisons is None or judged.waiting > MAY_WAIT * judged.asked

    def _save(self, state: Round) -> None:
        # Without a fit there is nothing yet that a resume could not ask again.
        if state.number == 0 or self._checkpoints.saved(state.number):
            return
        directory = self._checkpoints.begin(state.number)
        parts = self.roles.save(directory)
        self._checkpoints.commit(state.number, parts, {"run_id": self._tracker.run_id})

    def result(self, folder: Path) -> dict[str, Any]:
        """Return what the run came to, from its own records."""
        from rlhf_ray.tracking.history import History

        series = History.read(folder).series
        returns = series["eval_reward"].values
        asked = series["comparisons"].values[-1] if "comparisons" in series else 0.0
        last = returns[-LAST_EVALUATIONS:]
        return {"before": returns[0], "after": sum(last) / len(last), "comparisons": int(asked)}
