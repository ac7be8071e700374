"""The three roles as Ray actors, and the calls by which they work side by side."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray

from examples.online_preferences.agent import ActingRole, Walked
from examples.online_preferences.comparisons import ComparingRole, Judged
from examples.online_preferences.predictor import Fitted, PredictingRole
from examples.online_preferences.run_name import run_name
from examples.online_preferences.settings import FIRST_COMPARISONS, Settings
from rlhf_ray.algorithms.clip_preferences import comparisons_due
from rlhf_ray.checkpoint.checkpoints import Checkpoint
from rlhf_ray.checkpoint.parts import Part
from rlhf_ray.checkpoint.storage import join
from rlhf_ray.cluster.connect import Cluster
from rlhf_ray.cluster.group import ActorGroup, ready_together
from rlhf_ray.cluster.outcome import Caller, wait_together
from rlhf_ray.config.placement import PlacementConfig
from rlhf_ray.runs.recovery import RESTARTS

ACTING, PREDICTING, COMPARING = "acting", "predicting", "comparing"

HALVING_SHARE = 0.25
"""After this share of the run the rate of comparisons is half of what it was."""

LEARNED_AFTER_ROUNDS = 2
"""From a question to the policy that learns from its answer: the predictors are fitted to it in the next round."""


@dataclass(frozen=True)
class Round:
    """State of the roles after a round, from which they begin the next."""

    number: int
    walked: Walked
    judged: Judged | None = None
    fitted: Fitted | None = None
    """Both None where the true reward is learned from."""

    def metrics(self) -> dict[str, float]:
        """Return the metrics of all roles, by name."""
        found = dict(self.walked.metrics)
        if self.judged is not None:
            found |= {"comparisons": float(self.judged.asked), "comparisons/waiting": float(self.judged.waiting)}
        return found | (self.fitted.metrics if self.fitted is not None else {})


def questions_due(settings: Settings, number: int, steps: int) -> int:
    """Count the comparisons that a run may have asked for by the end of round `number`, of `steps` steps each."""
    # What is asked later would be answered for nothing. However short a run is, its first round asks.
    asking = max(1, settings.rounds - LEARNED_AFTER_ROUNDS)
    halving = HALVING_SHARE * settings.rounds * steps
    return comparisons_due(number * steps, asking * steps, settings.comparisons, settings.first_share, halving)


class Roles:
    """The actors of one run."""

    def __init__(self, cluster: Cluster, settings: Settings) -> None:
        self._settings = settings
        self._seconds = cluster.deadlines.call_seconds
        self._groups: dict[str, ActorGroup] = {}
        for name, (kind, arguments) in self._kinds().items():
            self._groups[name] = ActorGroup(cluster, kind, PlacementConfig(), name, _always(arguments), RESTARTS)
        ready_together(list(self._groups.values()))

    @property
    def names(self) -> list[str]:
        """Names of the roles that there are."""
        return list(self._groups)

    def _kinds(self) -> dict[str, tuple[type, dict[str, Any]]]:
        settings = self._settings
        common = {"task": settings.task, "seed": settings.seed}
        episodes = {"episodes": settings.episodes, "evaluation_episodes": settings.evaluation_episodes}
        kinds: dict[str, tuple[type, dict[str, Any]]] = {ACTING: (ActingRole, common | episodes)}
        if settings.rewards == ["preferences"]:
            fit = {"members": settings.members, "steps": settings.fit_steps}
            kinds[PREDICTING] = (PredictingRole, common | fit)
            asks = settings.judge == "people"
            people = {"store": settings.page().store, "run": run_name(settings)} if asks else {}
            kinds[COMPARING] = (ComparingRole, {"seed": settings.seed, **people})
        return kinds

    def first(self) -> Round:
        """Watch the policy that has learned nothing, and judge it in pairs drawn at random.

        The predictors begin once there is something to learn from.
        """
        walked: Walked = self._call(ACTING, "explore")
        if PREDICTING not in self._groups:
            return Round(0, walked)
        judged: Judged = self._call(
            COMPARING, "ask", walked.clips, None, questions_due(self._settings, 0, walked.steps), 0
        )
        return Round(0, walked, judged, self._call(PREDICTING, "current"))

    def fit_first(self, before: Round) -> Round:
        """Fit for the first time, to what was judged of the policy that has learned nothing."""
        assert before.judged is not None
        fitted = self._call(PREDICTING, "fit", before.judged.comparisons, 0)
        return Round(before.number, before.walked, before.judged, fitted)

    def look(self, before: Round) -> Round:
        """Return the same with what was judged meanwhile."""
        return Round(before.number, before.walked, self._call(COMPARING, "judged"), before.fitted)

    def ask_more(self, before: Round) -> Round:
        """Ask further questions, where what was asked teaches nothing; no more than the run has."""
        assert before.judged is not None
        assert before.fitted is not None
        number, settings = before.number, self._settings
        due = max(questions_due(settings, number, before.walked.steps), before.judged.asked + FIRST_COMPARISONS)
        # Before the first fit the predictors know nothing about what to ask.
        ensemble = before.fitted.ensemble if number else None
        judged = self._call(COMPARING, "ask_more", ensemble, min(due, settings.comparisons), number)
        return Round(number, before.walked, judged, before.fitted)

    def next(self, before: Round) -> Round:
        """Make one round: all roles work at once, each on what the others had after the round before."""
        number, settings = before.number + 1, self._settings
        evaluate = number % settings.evaluate_every == 0 or number == settings.rounds
        if before.judged is None or before.fitted is None:
            return Round(number, self._call(ACTING, "train", number, None, evaluate))
        ensemble = before.fitted.ensemble
        due = questions_due(settings, number, before.walked.steps)
        walked, judged, fitted = self._together(
            f"round {number}",
            (ACTING, "train", number, ensemble, evaluate),
            (COMPARING, "ask", before.walked.clips, ensemble, due, number),
            (PREDICTING, "fit", before.judged.comparisons, number),
        )
        return Round(number, walked, judged, fitted)

    def save(self, directory: str) -> dict[str, list[Part]]:
        """Write all roles into a checkpoint."""
        calls = [(name, "save", join(directory, name)) for name in self._groups]
        return dict(zip(self._groups, self._together("saving", *calls), strict=True))

    def restore(self, checkpoint: Checkpoint) -> Round:
        """Give all roles what a checkpoint has; the round after which it was taken."""
        self._together("loading", *((name, "restore", checkpoint.role(name)) for name in self._groups))
        walked: Walked = self._call(ACTING, "current")
        if PREDICTING not in self._groups:
            return Round(checkpoint.step, walked)
        judged, fitted = self._call(COMPARING, "judged"), self._call(PREDICTING, "current")
        return Round(checkpoint.step, walked, judged, fitted)

    def start_again(self, dead: str) -> None:
        """Replace all actors after the death of one: what the others hold is of a round that nobody finished.

        Raises:
            RoleLost: it died too often.
        """
        for name, group in self._groups.items():
            group.restart_all(0 if name == dead else None)

    def _call(self, role: str, method: str, *arguments: Any) -> Any:
        return self._together(method, (role, method, *arguments))[0]

    def _together(self, phase: str, *calls: tuple[Any, ...]) -> list[Any]:
        """Run calls (role, method, arguments...) side by side, each within the deadline; return their results."""
        refs: list[tuple[ray.ObjectRef, Caller]] = []
        for role, method, *arguments in calls:
            refs.append((self._groups[role].submit_one(0, method, *arguments), Caller(role, 0)))
        return wait_together(refs, phase=phase, seconds=self._seconds)


def _always(arguments: dict[str, Any]) -> Callable[[int], dict[str, Any]]:
    """Return the same for whichever rank."""
    return lambda _: arguments
