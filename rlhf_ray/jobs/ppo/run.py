"""`rlhf ppo`: reinforcement learning from reward sources, on one page."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from itertools import islice
from typing import Any

from rlhf_ray.checkpoint.checkpoints import Checkpoint, Checkpoints
from rlhf_ray.cluster.connect import connect
from rlhf_ray.cluster.errors import DeadlineExceeded, RoleDied
from rlhf_ray.config.errors import BadInput, RlhfError
from rlhf_ray.config.jobs.ppo import PPOConfig
from rlhf_ray.config.rewards import ModelReward
from rlhf_ray.data.tokenization import Encoder
from rlhf_ray.experience.costs import constraint_of
from rlhf_ray.jobs.ppo.data import PPOData
from rlhf_ray.jobs.ppo.roles import PPORoles, critic_model, role_placements, turn_takers
from rlhf_ray.jobs.ppo.start import start_roles, turn_limits
from rlhf_ray.jobs.ppo.state import PPOState, kl_controller
from rlhf_ray.jobs.ppo.step import MOST_PROBES, PPODriver
from rlhf_ray.jobs.ppo.turns import POLICY
from rlhf_ray.models.score_statistics import units_of
from rlhf_ray.roles.trainer import TrainerGroup
from rlhf_ray.rollout.episodes import Episodes
from rlhf_ray.rollout.forked_environments import ForkedEnvironments
from rlhf_ray.rollout.single_turn import Sampling
from rlhf_ray.runs.folder import RunFolder, finished_before, tracked_run
from rlhf_ray.runs.model_checks import (
    LONGEST_SAMPLE,
    check_adapter,
    check_critic,
    check_engine,
    check_policy,
    check_reward_sources,
    check_transfer,
    job_tokenizer,
    text_lengths,
)
from rlhf_ray.runs.recovery import run_through_deaths
from rlhf_ray.runs.saving import restore_newest
from rlhf_ray.runs.stopping import StopRequest, stop_on_signals
from rlhf_ray.schedule import Loop, Schedule, Stop
from rlhf_ray.tracking.records import holds_evaluation
from rlhf_ray.tracking.tracker import Tracker


def run(config: PPOConfig) -> None:
    """Train until `config.steps` are done, or until asked to stop; begin, or resume from the newest checkpoint.

    Raises:
        RlhfError: with what is wrong and what to do.
    """
    schedule = schedule_of(config)
    if policy_finished_before(config, config.steps, evaluates=config.evaluation.data is not None):
        return
    tokenizer = check_models(config)
    data = PPOData.read(config, tokenizer, check_environment(config, tokenizer))
    checkpoints = Checkpoints(str(RunFolder.of(config).checkpoints), config.checkpoint.keep)
    saved = checkpoints.latest()
    refuse_fewer_steps(config, saved)  # before the folder's config is written anew

    with (
        tracked_run(config, saved, total_steps=config.steps) as (folder, tracker),
        started_roles(config, data, tracker) as (roles, stop),
    ):
        begin = partial(begin_loop, PPODriver, config, data, roles, tracker, checkpoints, schedule, stop)

        def make_all(loop: Loop) -> int:
            if (done := make_steps(loop)) == config.steps:
                roles.turns.give(POLICY)
                export(config, roles.policy, folder)
            return done

        again = partial(recover, begin, roles, tracker, checkpoints)
        done = run_through_deaths(begin, make_all, again, roles.trainers, lambda: tracker.last_step)
        finished = f"finished: the policy is in {folder.final}"
        tracker.message(finished if done == config.steps else folder.stopped(done, config.steps))


@contextmanager
def started_roles(config: PPOConfig, data: PPOData, tracker: Tracker) -> Iterator[tuple[PPORoles, StopRequest]]:
    """Say what was read, and start Ray and the roles, which takes a while; then hear who asks to stop."""
    models = (source for source in config.rewards if isinstance(source, ModelReward))
    for line in (*data.report(), *map(units_of, models)):
        tracker.message(line)
    tracker.message(f"starting Ray and the roles: {', '.join(role_placements(config))}")
    with (
        connect(config.cluster, config.groups, tracker.message, config.environment) as cluster,
        start_roles(config, cluster) as roles,
        # After Ray, which sets handlers of its own; and until now there was nothing to save.
        stop_on_signals() as stop,
    ):
        yield roles, stop


def schedule_of(config: PPOConfig) -> Schedule:
    """Return how long the run is, and what is due when.

    Where no prompts are held out, some to learn from are answered before the first and after the last step, for people
    to see what changed; unless they want no samples.

    """
    shows = 0 if config.tracking.samples_per_step else None
    return Schedule(
        config.steps,
        config.prompts_per_step,
        config.algorithm.max_staleness,
        ends_requests=config.rollout.deterministic or not config.rollout.in_flight,
        exact=config.rollout.deterministic,
        evaluate_every=config.evaluation.every_steps if config.evaluation.data is not None else shows,
        checkpoint_every=config.checkpoint.every_steps,
    )


def begin_loop(
    make: Callable[..., PPODriver],
    config: PPOConfig,
    data: PPOData,
    roles: PPORoles,
    tracker: Tracker,
    checkpoints: Checkpoints,
    schedule: Schedule,
    stop: Stop,
) -> Loop:
    """Return the loop of a run at its newest checkpoint, or at the start; `make` is `PPODriver`, or a kind of it."""
    algorithm = config.algorithm
    state = PPOState(data.cursor(), kl_controller(algorithm.kl), data.pretraining(), constraint_of(algorithm))
    held_out = data.held_out.rows if data.held_out is not None else []
    driver = make(config, roles, data.by_id, held_out, tracker, checkpoints, state)
    # Until there are answers.
    roles.sync.read([record.prompt_ids for record in islice(data.by_id.values(), MOST_PROBES)])
    progress = restore_newest(checkpoints, driver.restore)
    return Loop(driver, schedule, progress, stop=stop)


def make_steps(loop: Loop) -> int:
    """Make the steps that are left, until the last checkpoint is whole; returns how many are done."""
    driver: PPODriver = loop.driver  # type: ignore[assignment]  # as `begin_loop` made it
    with driver.saves.finished():
        try:
            return loop.run()
        except DeadlineExceeded:
            if loop.rescued:  # by roles that answered after it
                with suppress(RlhfError):
                    driver.saves.finish()
            raise


def recover(
    begin: Callable[[], Loop],
    roles: PPORoles,
    tracker: Tracker,
    checkpoints: Checkpoints,
    loop: Loop | None,
    death: RoleDied,
) -> Loop:
    """Start a dead model again: the reference learned nothing, the others go back to their checkpoint, see `begin`."""
    keeps = roles.is_reference(death.role)
    roles.restart_trainer(death, from_start=not keeps and checkpoints.latest() is None)
    if keeps and loop is not None:
        driver: PPODriver = loop.driver  # type: ignore[assignment]  # as `begin` made it
        driver.forget_step()
        loop = loop.again()
    else:
        loop = begin()
    tracker.message(f"{death.role} runs again; going on from step {loop.progress.done}")
    return loop


def policy_finished_before(config: PPOConfig, steps: int, *, evaluates: bool = False) -> bool:
    """Tell, and say, whether an earlier start made all steps, evaluated at the end and wrote the policy.

    Raises:
        BadInput: the folder holds a run with other settings.
    """
    folder = RunFolder.of(config)
    if evaluates and not holds_evaluation(folder.path, steps):
        return False
    return finished_before(config, steps, exports=[folder.final_average] if averaged(config) == "beside" else [])


def refuse_fewer_steps(config: PPOConfig, saved: Checkpoint | None) -> None:
    """Refuse to end a run before where it is.

    Raises:
        BadInput: the checkpoint is of a later step than the last one asked for.
    """
    if saved is not None and saved.state["step"] > config.steps:
        raise BadInput(
            f"steps: {config.steps}, but the run in {RunFolder.of(config).path} has made {saved.state['step']} "
            "already; ask for at least as many, or choose another output"
        )


def export(config: PPOConfig, policy: TrainerGroup, folder: RunFolder) -> None:
    """Write the policy, its average, or both, as Hugging Face directories."""
    policy.export(str(folder.final), average=averaged(config) == "instead")
    if averaged(config) == "beside":
        policy.export(str(folder.final_average), average=True)


def averaged(config: PPOConfig) -> str | None:
    """Return where the average of the policy's weights is written; None where none is kept."""
    return config.policy.ema_export if config.policy.ema_decay is not None else None


def refuse_to_write_ahead(config: PPOConfig) -> None:
    """Refuse staleness where engines give their devices away while the policy learns.

    Raises:
        BadInput: they share devices. DoesNotFit: the roles do not fit their groups.
    """
    stale = config.algorithm.max_staleness
    if stale and "rollout" in turn_takers(config):
        raise BadInput(
            f"algorithm.max_staleness: {stale} lets engines write while the policy learns, but here they share devices "
            "with it, or with another role, and take turns; set 0, or place rollout on devices of its own"
        )


def check_environment(config: PPOConfig, tokenizer: Any) -> list[dict[str, Any]]:
    """Start the environment's process once, and try the chat template; return the schemas of the tools in it.

    Raises:
        BadInput: the file cannot be imported, or the template has no turns or calls that can be read.
    """
    environment = config.rollout.environment
    if environment is None:
        return []
    with ForkedEnvironments(environment) as environments:
        Episodes(environments, Encoder(tokenizer), Sampling.from_config(config.rollout), turn_limits(config))
        return environments.tools


def check_models(config: PPOConfig) -> Any:
    """Check that each role's model can be what the role needs; return the policy's tokenizer.

    Raises:
        BadInput: names the key and what to do.
    """
    refuse_to_write_ahead(config)
    tokenizer = job_tokenizer(config.model)
    longest = config.longest_sample()
    lengths = {LONGEST_SAMPLE: longest} | text_lengths(config)
    check_policy(config.model, tokenizer, lengths)
    check_adapter("policy", config.model, config.policy.lora)
    check_engine(config.model, config.rollout, longest)
    check_transfer(config.model, config.rollout)
    check_reward_sources(config)
    for name, critic in config.critics.items():
        start = critic_model(config, name)
        check_critic(f"critics.{name}.path", start, config.model, tokenizer, lengths)
        check_adapter(f"critics.{name}", start, critic.lora, scalar=True)
    return tokenizer
