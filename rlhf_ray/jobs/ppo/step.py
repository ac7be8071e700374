"""A PPO step on one page: what the driver does, act by act. `schedule.Loop` calls the acts and says when.

    act                                       passes on                          file, in rlhf_ray/
    sync: before the first step, and at the end of each
 1  give the policy's weights to the engines  version v, verified on both sides  roles/policy_sync.py, transfer/
    rollout
 2  take the next prompts                     prompts, each once in a pass       data/cursor.py
 3  let the engines answer them               groups of samples as they finish   rollout/pool.py, collection.py
 4  drop groups of equal rewards (DAPO),      groups that teach, with their      jobs/ppo/filtering.py
      which are asked for here, not in 5        rewards; more prompts to 3
    score, for each group as it comes
 5  rewards                                   promises of scores,                roles/scorer.py, scoring/
      policy, reference, critics                of log-probabilities, of values  roles/trainer.py, training/rank.py
    make_experience
 6  wait for all of them                      the samples, and RoleOutputs       jobs/ppo/scoring.py
 7  KL to the reference, shaped rewards       ScoredBatch                        experience/experience.py
 8  advantages and returns                    Experience: columns of tokens      experience/estimators.py, costs.py
    update
 9  divide the batch into minibatches         rows of each optimizer step        experience/minibatches.py
10  optimizer steps of policy and critics     metrics                            jobs/ppo/update.py, training/rank.py,
      by the loss that the config names                                            experience/objectives.py
    evaluate, log, checkpoint
11  where they are due                        metrics, samples, a checkpoint     evaluation/held_out.py, tracking/,
                                                                                 checkpoint/

Before each act, `roles.turns` gives devices that roles share to those that it needs (jobs/ppo/turns.py).
7 and 8 run once over the whole batch: no rank and no micro-batch can change the numbers.
What a driver keeps from step to step is in jobs/ppo/state.py; how the roles start, in jobs/ppo/start.py.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from rlhf_ray.checkpoint.checkpoints import Checkpoint, Checkpoints
from rlhf_ray.checkpoint.storage import join
from rlhf_ray.cluster.errors import DeadlineExceeded, RoleFailed, RoleRaised
from rlhf_ray.config.episodes import ENVIRONMENT
from rlhf_ray.config.errors import RlhfError
from rlhf_ray.config.jobs.ppo import PPOConfig
from rlhf_ray.data.batches import TokenBatch
from rlhf_ray.data.records import PromptRecord, Sample
from rlhf_ray.evaluation.held_out import evaluate
from rlhf_ray.experience.experience import Experience, RoleOutputs, estimate
from rlhf_ray.experience.metrics import staleness_metrics
from rlhf_ray.experience.objectives import policy_loss
from rlhf_ray.jobs.ppo.filtering import InformativeGroups
from rlhf_ray.jobs.ppo.roles import PPORoles, uses
from rlhf_ray.jobs.ppo.scoring import PendingScores, failed_episodes, put_rewards, rewards_of
from rlhf_ray.jobs.ppo.state import PPOState
from rlhf_ray.jobs.ppo.turns import POLICY, REWARDS, ROLLOUT
from rlhf_ray.jobs.ppo.update import optimise
from rlhf_ray.rollout.interfaces import Group, Groups, PromptBatch
from rlhf_ray.runs.folder import RunFolder
from rlhf_ray.runs.saving import Saves
from rlhf_ray.schedule import GENERATE, SCORE, RunProgress
from rlhf_ray.scoring.source import FailureTally
from rlhf_ray.tracking.history import History
from rlhf_ray.tracking.over_optimisation import OverOptimisationWatch
from rlhf_ray.tracking.records import EVALUATION, SHOWN, holds_evaluation
from rlhf_ray.tracking.tracker import Tracker
from rlhf_ray.transfer.errors import ManifestMismatch

ROUND_SEEDS = 1_000_003
"""Between the seeds of the prompts of a step that are sent out after one another, so that a prompt that comes again is
answered anew."""

MEMORY = "groups"
"""Part of a checkpoint that has the finished groups of batches under way."""

MOST_PROBES = 16
"""Samples that are looked at for the natural text by which the next sync is verified."""

MOST_SHOWN = 8
"""Prompts to learn from that are answered for people alone, twice in a run."""


@dataclass
class PPODriver:
    """The acts of `schedule.Driver`, on the roles of a run."""

    config: PPOConfig
    roles: PPORoles
    prompts: Mapping[str, PromptRecord]
    """By id."""
    held_out: Sequence[PromptRecord]
    tracker: Tracker
    checkpoints: Checkpoints
    state: PPOState
    watch: OverOptimisationWatch | None = None
    """Of what the run logs; None until it begins or resumes."""
    _filters: dict[int, InformativeGroups] = field(default_factory=dict)
    """Of the batches under way, by step."""
    _shown: list[Sample] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._greedy = self.config.algorithm.advantages == "remax"
        self.saves = Saves(self.checkpoints, self.config.checkpoint.in_background)
        self._pending = defaultdict[int, PendingScores](self._nothing_pending)
        """By step."""
        environment = self.config.rollout.environment
        self._episodes: FailureTally | None = None
        """Of those whose environment failed; None where there is no environment."""
        if environment is not None:
            share = environment.failed_episodes
            self._episodes = FailureTally(
                "rollout.environment", share, work="the environment", setting="failed_episodes"
            )

    def _nothing_pending(self) -> PendingScores:
        config = self.config
        return PendingScores(
            self.roles,
            tokens=config.tokens_per_microbatch * config.policy.workers,
            order=uses(config)[SCORE],
            greedy_last=self._greedy,
            engine_logprobs=config.algorithm.old_logprobs == "engine",
            rewarded=self._comes_rewarded,
        )

    @property
    def _comes_rewarded(self) -> bool:
        """Whether groups have their rewards before they are scored: the filter asked for them."""
        return self.config.algorithm.filter_groups is not None

    def sync(self, version: int) -> Mapping[str, float]:
        """Give the policy's weights to the engines as `version`, and verify them there."""
        self.saves.look()
        self.tracker.progress(version, "sync")
        pool, sync, turns = self.roles.pool, self.roles.sync, self.roles.turns
        sync.learned(version)
        raised = False
        turns.expect_sync()
        while True:
            # An engine may have died since the last batch, or together with the policy.
            pool.restore_lost()
            # It has trained, and keeps memory that the engines need.
            self.roles.policy.free_cache()
            turns.give_for_sync()
            try:
                found = sync(version, pool.serving)
                turns.expect_sync(False)
                return found
            except (RoleFailed, DeadlineExceeded) as error:
                # An engine that died, or was left half updated, starts anew; anything else ends the run.
                if isinstance(error, RoleRaised):
                    # One that lost its peer raises too. What is raised again, or by other weights, has no such cause.
                    if raised or isinstance(error.__cause__, ManifestMismatch):
                        raise
                    raised = True
                self.roles.replace_broken_engines(error)

    def rollout(self, step: int, prompts: int) -> Groups:
        """Send the next prompts to the engines; with a filter, further ones in place of groups that it drops."""

        def start(number: int, count: int) -> Groups:
            taken = [self.prompts[prompt_id] for prompt_id in self.state.cursor.take(count)]
            self.roles.turns.give(ROLLOUT)
            seed = self.config.seed + ROUND_SEEDS * number
            samples = self.config.samples_per_prompt + self._greedy
            # Of the weights at the start of the batch: none of its tokens may be older.
            version = max(0, step - self.config.algorithm.max_staleness)
            return self.roles.source.run(
                PromptBatch(taken, step, version, samples_per_prompt=samples, seed=seed, greedy_last=self._greedy)
            )

        batches = self.config.algorithm.filter_groups
        if batches is None:
            return start(0, prompts)
        self._filters[step] = InformativeGroups(
            start,
            self.roles.rewards,
            wanted=prompts,
            most=prompts * batches,
            one_by_one=not self.config.rollout.deterministic,
            greedy_last=self._greedy,
            turns=self.roles.turns,
        )
        return self._filters[step]

    def score(self, step: int, group: Group, *, early: bool = False) -> None:
        """Start rewards and forward passes once there is a micro-batch's worth of samples for each rank."""
        pending = self._pending[step]
        pending.add(group, early=early)
        if not early:
            self.saves.look()
            total = self.config.prompts_per_step * (self.config.samples_per_prompt + self._greedy)
            self.tracker.progress(step, GENERATE, done=pending.samples, total=total)

    def make_experience(self, step: int) -> Experience:
        """Wait for what `score` started; KL, token rewards, advantages and returns of the whole batch."""
        self.tracker.progress(step, "score")
        self.roles.turns.expect_sync()  # all answers are there
        samples, outputs = self._pending.pop(step, self._nothing_pending()).finish()
        if self._episodes is not None:
            self._episodes.add(failed_episodes(samples))
        _refuse_a_batch_without_rewards(step, samples, outputs)
        self._shown = samples
        self.roles.sync.read([np.concatenate([s.prompt_ids, s.response_ids]) for s in samples[:MOST_PROBES]])
        experience = estimate(
            samples,
            TokenBatch.from_samples(samples),
            outputs,
            self.config.algorithm,
            self.state.kl.coefficient,
            longest=self.config.rollout.max_new_tokens,
            moments=self.state.moments,
            constraint=self.state.constraint,
        )
        if self.config.algorithm.max_staleness:
            experience.metrics.update(staleness_metrics(samples, step))
        return experience

    def update(self, step: int, experience: Experience) -> Mapping[str, float]:
        """Make `epochs` passes in `minibatches` optimizer steps each; policy and critics side by side."""
        self.saves.look()
        self.tracker.progress(step, "train")
        roles, state, config = self.roles, self.state, self.config
        loss = policy_loss(config.algorithm, state.kl.coefficient)
        draw = state.pretraining.draw if state.pretraining is not None else None
        found = optimise(experience, config, roles, loss, step=step, draw_texts=draw)
        state.learned(experience)
        if (filtered := self._filters.pop(step, None)) is not None:
            found |= filtered.metrics()
            state.cursor.finish(group[0].prompt_id for group in filtered.dropped)
        if self.roles.memory is not None:
            self.roles.memory.forget(step + 1)
        self._average()
        self._export(step + 1, experience.metrics)
        return experience.metrics | found

    def _average(self) -> None:
        """Move the average of the policy's weights, where one is kept; it begins with those of the start."""
        if self.config.policy.ema_decay is not None:
            self.roles.policy.average_weights(self.config.policy.ema_decay)

    def _export(self, done: int, metrics: Mapping[str, float]) -> None:
        """Write the policy as it is now, where that is due."""
        every = self.config.policy.export_every_steps
        if every and done % every == 0:
            self.saves.finish()
            name = f"step_{done}_reward_{metrics['objective/scores']:.3f}"
            self.roles.policy.export(str(RunFolder.of(self.config).exports / name))

    def evaluate(self, done: int) -> None:
        """Answer and score the held-out prompts; where there are none, a few to learn from, which are only shown."""
        self.tracker.progress(done, "evaluate")
        kind, batch = EVALUATION if self.held_out else SHOWN, self._batch_to_evaluate(done)

        def generate(_: Sequence[PromptRecord]) -> list[Sample]:
            self.roles.turns.give(ROLLOUT)
            return [sample for group in self.roles.pool.run(batch) for sample in group]

        def score(samples: Sequence[Sample]) -> Mapping[str, list[float | None]]:
            self.roles.turns.give(REWARDS)
            put_rewards(samples, self.roles.rewards.submit(samples).result())
            return rewards_of(samples)

        rewards = self.roles.rewards
        weights = rewards.weights | ({} if self._episodes is None else {ENVIRONMENT: 1.0})
        result = evaluate(batch.prompts, generate, score, weights, rewards.costs)
        rows = [_row(sample, score) for sample, score in zip(result.samples, result.scores, strict=True)]
        self.tracker.samples(done, rows, kind=kind)
        if kind == EVALUATION:
            self._log(done, result.logged())

    def _batch_to_evaluate(self, done: int) -> PromptBatch:
        seed = self.config.seed + 1
        if self.held_out:
            return PromptBatch(self.held_out, done, done, self.config.evaluation.samples_per_prompt, seed)
        shown = min(MOST_SHOWN, self.config.tracking.samples_per_step)
        # By the seeds of one step, so that what differs between two answers to a prompt is the policy.
        return PromptBatch(list(islice(self.prompts.values(), shown)), 0, done, 1, seed)

    def log(self, done: int, metrics: Mapping[str, float], seconds: Mapping[str, float]) -> None:
        """Record metrics and some samples of the step."""
        tokens = sum(len(s.response_ids) for s in self._shown)
        parts = {f"time/{part}": value for part, value in seconds.items()}
        rates = {"tokens_per_second": tokens / seconds["step"], "step_time": seconds["step"]}
        if self.config.rollout.replay is None:
            rates["engines/idle"] = self.roles.pool.take_idle_seconds()
        episodes = float(done * self.config.prompts_per_step * self.config.samples_per_prompt)
        self._log(done, {**metrics, **parts, **rates, "episode": episodes})
        self.tracker.samples(done, [_row(sample, None) for sample in self._shown])

    def _log(self, done: int, metrics: Mapping[str, float]) -> None:
        """Record metrics, and say where they look like over-optimisation."""
        self.tracker.log(done, metrics)
        warning = self.watch.see(done, metrics) if self.watch is not None else None
        if warning is not None:
            self.tracker.warn(warning)

    def checkpoint(self, done: int, *, evaluated: bool) -> None:
        """Begin to save models, optimizers and the driver's own state; whole, or not at all: see `Saves`."""
        self.tracker.progress(done, "checkpoint")
        directory = self.saves.begin(done)
        for name, group in self.roles.trained.items():
            self.roles.turns.give(name)
            self.saves.copy(group, join(directory, name))
        memory = self.roles.memory
        parts = {} if memory is None else {MEMORY: memory.save(join(directory, MEMORY))}
        own = {"step": done, "evaluated": evaluated, "tracker_run": self.tracker.run_id}
        self.saves.follow(done, self.roles.trained, parts, own | self.state.to_json())

    def restore(self, checkpoint: Checkpoint | None) -> RunProgress:
        """Continue from a checkpoint, with whose run id the tracker was opened; None: begin with fresh roles.

        Returns:
            How far the run is.
        """
        progress = RunProgress()
        if self.roles.memory is not None:
            self.roles.memory.load(None)  # what it has was written by weights that may be gone
        if checkpoint is None:
            self.roles.turns.give(POLICY)
            self._average()
            self.tracker.truncate_after(-1)
        else:
            for name, group in self.roles.trained.items():
                self.roles.turns.give(name)
                group.load(checkpoint.role(name), checkpoint.manifest.parts[name])
            self.state.load(checkpoint.state)
            if self.roles.memory is not None and MEMORY in checkpoint.manifest.parts:
                checkpoint.check(MEMORY)
                self.roles.memory.load(checkpoint.role(MEMORY))
            progress.done = progress.saved = checkpoint.state["step"]
            # The checkpoint of a run that was asked to leave is older than an evaluation that a resume made up for.
            folder = RunFolder.of(self.config).path
            progress.evaluated = checkpoint.state["evaluated"] or holds_evaluation(folder, progress.done)
            self.tracker.resume_after(progress.done, checkpoint.directory)
        # It knows the metrics that are kept.
        history = History.read(RunFolder.of(self.config).path)
        self.watch = OverOptimisationWatch(history, self.config.algorithm.kl.target)
        return progress

    def forget_step(self) -> None:
        """Drop a step that broke off before anything was learned; its prompts are handed out first."""
        self.state.cursor.load(self.state.cursor.state())
        self._pending.clear()
        self._filters.clear()
        self._shown = []


def _refuse_a_batch_without_rewards(step: int, samples: Sequence[Sample], outputs: RoleOutputs) -> None:
    """Refuse to go on: a run that learns from nothing must not end as a success;
    failures of a source have a limit of their own.
    """
    known = outputs.scores.isfinite()
    if outputs.costs is not None:
        known &= outputs.costs.scores.isfinite()
    if outputs.greedy is not None:
        known &= outputs.greedy.rewards.isfinite()
    if bool(known.any()):
        return
    unrated = [name for name in samples[0].rewards if all(sample.rewards[name] is None for sample in samples)]
    cost = " and a cost" if outputs.costs is not None else ""
    raise RlhfError(
        f"step {step + 1}: none of the {len(samples)} samples has a reward{cost}; for all of them None (does "
        f"not apply) came from: {', '.join(unrated) or 'no source, but each failed'}. Check the columns of the "
        f"data, which are: {', '.join(samples[0].columns) or 'none'}"
    )


def _row(sample: Sample, reward: float | None) -> dict[str, Any]:
    """Return a sample as a person reads it."""
    row: dict[str, Any] = {"prompt": sample.prompt, "response": sample.response, "rewards": sample.rewards}
    if sample.episode is not None:
        row |= {"ended": sample.finish_reason, "turns": sample.episode.turns}
        if sample.episode.failure is not None:
            row["failure"] = ": ".join(sample.episode.failure)
    return row if reward is None else row | {"reward": reward}
