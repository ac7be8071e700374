"""What a PPO run does in each phase of a step; `schedule.Loop` says when."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from rlhf_ray.algorithms.kl import AdaptiveKL, FixedKL
from rlhf_ray.algorithms.rewards import RunningMoments
from rlhf_ray.checkpoint.checkpoints import Checkpoint, Checkpoints
from rlhf_ray.checkpoint.storage import join
from rlhf_ray.cluster.errors import DeadlineExceeded, RoleFailed, RoleRaised
from rlhf_ray.config.errors import RlhfError
from rlhf_ray.config.jobs.ppo import PPOConfig
from rlhf_ray.data.batches import TokenBatch
from rlhf_ray.data.cursor import Cursor
from rlhf_ray.data.records import PromptRecord, Sample
from rlhf_ray.evaluation.held_out import evaluate
from rlhf_ray.experience.costs import CostConstraint
from rlhf_ray.experience.experience import Experience, RoleOutputs, estimate
from rlhf_ray.experience.objectives import policy_loss
from rlhf_ray.jobs.ppo.data import Pretraining
from rlhf_ray.jobs.ppo.filtering import InformativeGroups
from rlhf_ray.jobs.ppo.roles import PPORoles
from rlhf_ray.jobs.ppo.scoring import PendingScores, put_rewards
from rlhf_ray.jobs.ppo.update import optimise
from rlhf_ray.rollout import recording
from rlhf_ray.runs.folder import RunFolder
from rlhf_ray.schedule import GENERATE, SCORE, SYNC, DeviceTurns, Groups
from rlhf_ray.tracking.history import History
from rlhf_ray.tracking.over_optimisation import OverOptimisationWatch
from rlhf_ray.tracking.records import holds_evaluation
from rlhf_ray.tracking.tracker import Tracker
from rlhf_ray.transfer.errors import ManifestMismatch

Group = list[Sample]


ROUND_SEEDS = 1_000_003
"""Between the seeds of a step's rounds, so that a prompt that comes again in a later one is answered anew."""


@dataclass
class PPOActs:
    """The acts of `schedule.Acts`, on the roles of a run."""

    config: PPOConfig
    roles: PPORoles
    prompts: Mapping[str, PromptRecord]
    """By id."""
    cursor: Cursor
    held_out: Sequence[PromptRecord]
    tracker: Tracker
    checkpoints: Checkpoints
    kl: FixedKL | AdaptiveKL
    turns: DeviceTurns = field(default_factory=DeviceTurns)
    """Of the roles that share devices."""
    pretraining: Pretraining | None = None
    """Texts that are mixed in."""
    moments: RunningMoments = field(default_factory=RunningMoments)
    """Of all rewards that were learned from."""
    constraint: CostConstraint | None = None
    """Lambda and the newest costs; where costs have a critic."""
    done: int = 0
    """Steps that the policy has learned from."""
    saved: int = 0
    """Steps that the newest checkpoint holds."""
    evaluated: bool = False
    """Whether the policy was evaluated after the newest of them."""
    watch: OverOptimisationWatch | None = None
    """Of what the run logs; None until it begins or resumes."""
    _filter: InformativeGroups | None = None
    _shown: list[Sample] = field(default_factory=list)

    def __post_init__(self) -> None:
        config = self.config
        self._greedy = config.algorithm.advantages == "remax"
        self._measuring = PendingScores(
            self.roles,
            tokens=config.tokens_per_microbatch * config.policy.workers,
            greedy_last=self._greedy,
            engine_logprobs=config.algorithm.old_logprobs == "engine",
            rewarded=config.algorithm.filter_groups is not None,
        )

    def sync(self, version: int) -> Mapping[str, float]:
        """Give the policy's weights to the engines as `version`, and verify them there."""
        self.tracker.progress(self.done, "sync")
        pool, sync = self.roles.pool, self.roles.sync
        raised = False
        while True:
            # An engine may have died since the last batch, or together with the policy.
            pool.restore_lost()
            # Also where an engine stayed out: then the phase in which it should have started did not end.
            self.turns.begin(SYNC)
            try:
                return sync(version, pool.serving)
            except (RoleFailed, DeadlineExceeded) as error:
                # An engine that died, or was left half updated, starts anew; anything else ends the run.
                if isinstance(error, RoleRaised):
                    # One that lost its peer raises too. What is raised again, or by other weights, has no such cause.
                    if raised or isinstance(error.__cause__, ManifestMismatch):
                        raise
                    raised = True
                self.roles.replace_broken_engines(error)

    def rollout(self, step: int, prompts: int) -> Groups[Group]:
        """Send the next prompts to the engines; with a filter, further ones in place of groups that it drops."""

        def start(number: int, count: int) -> recording.Groups:
            return self.roles.source.run(
                [self.prompts[prompt_id] for prompt_id in self.cursor.take(count)],
                step=step,
                version=step,
                samples_per_prompt=self.config.samples_per_prompt + self._greedy,
                seed=self.config.seed + ROUND_SEEDS * number,
                greedy_last=self._greedy,
            )

        batches = self.config.algorithm.filter_groups
        if batches is None:
            return start(0, prompts)
        self._filter = InformativeGroups(
            start,
            self.roles.rewards,
            wanted=prompts,
            most=prompts * batches,
            greedy_last=self._greedy,
            turns=self.turns,
        )
        return self._filter

    def score(self, group: Group) -> None:
        """Start rewards and forward passes once there is a micro-batch's worth of samples for each rank."""
        self._measuring.add(group)
        total = self.config.prompts_per_step * (self.config.samples_per_prompt + self._greedy)
        self.tracker.progress(self.done, GENERATE, done=self._measuring.samples, total=total)

    def evaluate_experience(self, groups: list[Group]) -> Experience:
        """Wait for what `score` started; KL, token rewards, advantages and returns of the whole batch."""
        self.tracker.progress(self.done, "score")
        samples, measured = self._measuring.finish()
        self._refuse_a_batch_without_rewards(samples, measured)
        self._shown = samples
        return estimate(
            samples,
            TokenBatch.from_samples(samples),
            measured,
            self.config.algorithm,
            self.kl.coefficient,
            longest=self.config.rollout.max_new_tokens,
            moments=self.moments,
            constraint=self.constraint,
        )

    def _refuse_a_batch_without_rewards(self, samples: Sequence[Sample], measured: RoleOutputs) -> None:
        """A run that learns from nothing must not end as a success; failures of a source have a limit of their own."""
        known = measured.scores.isfinite()
        if measured.costs is not None:
            known &= measured.costs.scores.isfinite()
        if measured.greedy is not None:
            known &= measured.greedy.rewards.isfinite()
        if bool(known.any()):
            return
        unrated = [name for name in samples[0].rewards if all(sample.rewards[name] is None for sample in samples)]
        cost = " and a cost" if measured.costs is not None else ""
        raise RlhfError(
            f"step {self.done + 1}: none of the {len(samples)} samples has a reward{cost}; for all of them None (does "
            f"not apply) came from: {', '.join(unrated) or 'no source, but each failed'}. Check the columns of the "
            f"data, which are: {', '.join(samples[0].columns) or 'none'}"
        )

    def update(self, experience: Experience) -> Mapping[str, float]:
        """`epochs` passes over the batch in `minibatches` optimizer steps each; policy and critics side by side."""
        self.tracker.progress(self.done, "train")
        loss = policy_loss(self.config.algorithm, self.kl.coefficient)
        roles = self.roles
        draw = self.pretraining.draw if self.pretraining is not None else None
        found = optimise(experience, self.config, roles.policy, roles.critics, loss, step=self.done, draw_texts=draw)
        self.kl = self.kl.update(experience.mean_kl, len(experience.samples))
        self.moments, self.constraint = experience.moments, experience.constraint
        self.cursor.finish(sample.prompt_id for sample in experience.samples if sample.index == 0)
        if self._filter is not None:
            found |= self._filter.metrics()
            self.cursor.finish(group[0].prompt_id for group in self._filter.dropped)
        self._average()
        self.done += 1
        self.evaluated = False
        self._export(experience.metrics)
        return experience.metrics | found

    def evaluate(self, done: int) -> None:
        """Answer and score the held-out prompts."""
        config = self.config
        self.tracker.progress(done, "evaluate")

        def generate(prompts: Sequence[PromptRecord]) -> list[Sample]:
            groups = self.roles.pool.run(
                prompts,
                step=done,
                version=done,
                samples_per_prompt=config.evaluation.samples_per_prompt,
                seed=config.seed + 1,
            )
            return [sample for group in groups for sample in group]

        def score(samples: Sequence[Sample]) -> Mapping[str, list[float | None]]:
            self.turns.begin(SCORE)
            by_source = self.roles.rewards.submit(samples).result()
            put_rewards(samples, by_source)
            return by_source

        rewards = self.roles.rewards
        result = evaluate(self.held_out, generate, score, rewards.weights, rewards.costs)
        rows = [_row(sample, score) for sample, score in zip(result.samples, result.scores, strict=True)]
        self.tracker.samples(done, rows, kind="evaluation")
        self._log(done, result.logged())
        self.evaluated = True

    def log(self, done: int, metrics: Mapping[str, float], seconds: Mapping[str, float]) -> None:
        """Metrics and some samples of the step."""
        tokens = sum(len(s.response_ids) for s in self._shown)
        parts = {f"time/{part}": value for part, value in seconds.items()}
        rates = {"tokens_per_second": tokens / seconds["step"], "step_time": seconds["step"]}
        episodes = float(done * self.config.prompts_per_step * self.config.samples_per_prompt)
        self._log(done, {**metrics, **parts, **rates, "episode": episodes})
        self.tracker.samples(done, [_row(sample, None) for sample in self._shown])

    def _log(self, done: int, metrics: Mapping[str, float]) -> None:
        """Record metrics, and say where they look like over-optimisation."""
        self.tracker.log(done, metrics)
        warning = self.watch.see(done, metrics) if self.watch is not None else None
        if warning is not None:
            self.tracker.warn(warning)

    def _average(self) -> None:
        """Move the average of the policy's weights, where one is kept; it begins with those of the start."""
        if self.config.policy.ema_decay is not None:
            self.roles.policy.average_weights(self.config.policy.ema_decay)

    def _export(self, metrics: Mapping[str, float]) -> None:
        """Write the policy as it is now, where that is due."""
        every = self.config.policy.export_every_steps
        if every and self.done % every == 0:
            name = f"step_{self.done}_reward_{metrics['objective/scores']:.3f}"
            self.roles.policy.export(str(RunFolder.of(self.config).exports / name))

    def again(self) -> "PPOActs":
        """The same state, for a step that broke off before anything was learned; its prompts are handed out first."""
        self.cursor.load(self.cursor.state())
        return replace(self, _filter=None, _shown=[])

    def checkpoint(self, done: int) -> None:
        """Save models, optimizers and the driver's own state; whole, or not at all."""
        self.tracker.progress(done, "checkpoint")
        directory = self.checkpoints.begin(done)
        parts = {name: group.save(join(directory, name)) for name, group in self.roles.trained.items()}
        state = {
            "step": done,
            "evaluated": self.evaluated,
            "prompts": self.cursor.state(),
            "kl_coefficient": self.kl.coefficient,
            "reward_moments": asdict(self.moments),
            "constraint": self.constraint.state() if self.constraint is not None else None,
            "ptx": self.pretraining.state() if self.pretraining is not None else None,
            "tracker_run": self.tracker.run_id,
        }
        self.checkpoints.commit(done, parts, state)
        self.saved = done

    def restore(self, checkpoint: Checkpoint | None) -> None:
        """Continue from a checkpoint, with whose run id the tracker was opened; None: begin with fresh roles."""
        if checkpoint is None:
            self._average()
            self.tracker.truncate_after(-1)
            self._watch()
            return
        for name, group in self.roles.trained.items():
            group.load(checkpoint.role(name))
        state: dict[str, Any] = checkpoint.state
        self.cursor.load(state["prompts"])
        self.kl = replace(self.kl, coefficient=state["kl_coefficient"])
        self.moments = RunningMoments(**state["reward_moments"])
        if self.constraint is not None and state["constraint"] is not None:
            self.constraint = self.constraint.restored(state["constraint"])
        if self.pretraining is not None and state["ptx"] is not None:
            self.pretraining.load(state["ptx"])
        self.done = self.saved = state["step"]
        # The checkpoint of a run that was asked to leave is older than an evaluation which a resume made up for.
        self.evaluated = state["evaluated"] or holds_evaluation(RunFolder.of(self.config).path, self.done)
        self.tracker.resume_after(self.done, checkpoint.directory)
        self._watch()

    def _watch(self) -> None:
        """Watch the metrics from here on, knowing those that are kept."""
        self.watch = OverOptimisationWatch(
            History.read(RunFolder.of(self.config).path), self.config.algorithm.kl.target
        )


def _row(sample: Sample, reward: float | None) -> dict[str, Any]:
    """A sample as a person reads it."""
    row: dict[str, Any] = {"prompt": sample.prompt, "response": sample.response, "rewards": sample.rewards}
    return row if reward is None else row | {"reward": reward}
