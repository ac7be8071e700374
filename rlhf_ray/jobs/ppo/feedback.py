"""`rlhf feedback`: the model answers, a person scores, one PPO step of that answer changes the weights."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from rlhf_ray.checkpoint.checkpoints import Checkpoints
from rlhf_ray.config.errors import BadInput
from rlhf_ray.config.jobs.feedback import FeedbackConfig
from rlhf_ray.feedback.scored_rows import (
    PERSON,
    PICTURE_FILE,
    ScoredRow,
    ScoredRows,
    draw_feedback,
    read_for_replay,
    vocabulary_of,
)
from rlhf_ray.feedback.terminal import ScoringTerminal
from rlhf_ray.jobs.ppo.data import PPOData
from rlhf_ray.jobs.ppo.run import (
    begin_loop,
    check_models,
    export,
    make_steps,
    policy_finished_before,
    recover,
    started_roles,
)
from rlhf_ray.jobs.ppo.step import PPODriver
from rlhf_ray.jobs.ppo.turns import POLICY
from rlhf_ray.rollout.interfaces import Group, Groups
from rlhf_ray.rollout.recording import Replayed
from rlhf_ray.runs.folder import RunFolder, tracked_run
from rlhf_ray.runs.recovery import run_through_deaths
from rlhf_ray.runs.snapshot import ANSWERS_FILE
from rlhf_ray.runs.stopping import StopRequest
from rlhf_ray.schedule import Loop, Schedule
from rlhf_ray.tracking.terminal import Terminal


@dataclass(frozen=True)
class Session:
    """Source of a person's scores, and the place where they are kept."""

    terminal: ScoringTerminal
    rows: ScoredRows
    """Of all sessions of the run."""
    replayed: Sequence[ScoredRow]
    """Rows to learn from instead of asking; none where a person is asked."""
    vocabulary: str
    stop: StopRequest
    picture: Path

    def known(self, step: int) -> ScoredRow | None:
        """Return the row of a step that was scored before: in a session that broke off, or elsewhere."""
        row = self.rows.of_step(step)
        if row is None and step <= len(self.replayed):
            row = replace(self.replayed[step - 1], step=step)
        return row

    def keep(self, row: ScoredRow) -> None:
        """Store a row, and draw the curves with it."""
        self.rows.add(row)
        draw_feedback(self.rows, self.picture)


@dataclass
class FeedbackDriver(PPODriver):
    """The driver of PPO, with a person in the place of reward sources."""

    session: Session | None = None

    @property
    def _comes_rewarded(self) -> bool:
        """The person gave them."""
        return True

    @property
    def _session(self) -> Session:
        if self.session is None:
            raise ValueError("a driver of feedback needs a session")
        return self.session

    def rollout(self, step: int, prompts: int) -> Groups:
        """Let the engine answer the next prompt, or take the answer that was scored before."""
        row = self._session.known(step + 1)
        if row is None:
            return super().rollout(step, prompts)
        [prompt_id] = self.state.cursor.take(prompts)
        return Replayed([[replace(row.sample, prompt_id=prompt_id, rewards=dict(row.sample.rewards))]])

    def score(self, step: int, group: Group, *, early: bool = False) -> None:
        """Ask the person; a row is stored before anything is learned from it."""
        session, number = self._session, step + 1
        [sample] = group
        if not sample.rewards:
            given = session.terminal.score(number, sample.prompt, sample.response)
            if given is None:
                session.stop.ask()
                return
            sample.rewards = {PERSON: given.reward}
            session.keep(ScoredRow(number, replace(sample), round(given.seconds, 3), session.vocabulary))
        elif session.rows.of_step(number) is None:
            session.keep(replace(session.replayed[number - 1], step=number))
        super().score(step, group, early=early)


def run(config: FeedbackConfig) -> None:
    """Ask and learn until `config.steps` answers are learned from, the rows of `replay` end, or the person leaves.

    Raises:
        RlhfError: with what is wrong and what to do.
    """
    tokenizer = check_models(config)
    vocabulary = vocabulary_of(tokenizer)
    replayed = _replayed(config, vocabulary)
    steps = min(config.steps, len(replayed)) if replayed else config.steps
    if policy_finished_before(config, steps):
        return
    data = PPOData.read(config, tokenizer)
    found = RunFolder.of(config)
    rows = ScoredRows(found.path / ANSWERS_FILE)
    checkpoints = Checkpoints(str(found.checkpoints), config.checkpoint.keep)
    saved = checkpoints.latest()
    schedule = Schedule(steps, 1, checkpoint_every=config.checkpoint.every_steps)

    with (
        tracked_run(config, saved, terminal=Terminal(None, bars=False)) as (folder, tracker),
        started_roles(config, data, tracker) as (roles, stop),
    ):
        terminal = ScoringTerminal(*config.reward_range, config.language)
        session = Session(terminal, rows, replayed, vocabulary, stop, folder.path / PICTURE_FILE)

        make = partial(FeedbackDriver, session=session)
        begin = partial(begin_loop, make, config, data, roles, tracker, checkpoints, schedule, stop)

        def make_all(loop: Loop) -> int:
            if done := make_steps(loop):
                roles.turns.give(POLICY)
                export(config, roles.policy, folder)
            return done

        again = partial(recover, begin, roles, tracker, checkpoints)
        done = run_through_deaths(begin, make_all, again, roles.trainers, lambda: tracker.last_step)
        if done:
            tracker.message(
                f"{done} answers learned from: the policy is in {folder.final}, the scores in {ANSWERS_FILE}"
            )
        else:
            tracker.message("nothing was scored; the same command begins again")


def _replayed(config: FeedbackConfig, vocabulary: str) -> list[ScoredRow]:
    if config.replay is None:
        if sys.stdin is None or sys.stdin.closed:
            raise BadInput("there is no terminal or file to read scores from; give `replay`, or run it in a terminal")
        return []
    rows = read_for_replay(Path(config.replay).expanduser(), config.reward_range, vocabulary)
    longest = config.longest_sample()
    for number, row in enumerate(rows, 1):
        tokens = len(row.sample.prompt_ids) + len(row.sample.response_ids)
        if tokens > longest:
            raise BadInput(
                f"replay: {config.replay}, line {number}: {tokens} tokens, but data.max_prompt_tokens and "
                f"rollout.max_new_tokens allow {longest}"
            )
    return rows
