"""Episodes: the policy and an environment take turns, token in and token out."""

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlhf_ray.data.bad_rows import BadRow
from rlhf_ray.data.records import ASSISTANT, TURN_REWARDS, Episode, FinishReason, Message, Prompt, Sample
from rlhf_ray.data.tokenization import Encoder, Ids
from rlhf_ray.data.tool_calls import CallParser
from rlhf_ray.data.turn_borders import ASKED, TurnBorders
from rlhf_ray.rollout.environment import Environment, EnvironmentFailed, Environments
from rlhf_ray.rollout.interfaces import Generate, RolloutTask
from rlhf_ray.rollout.lockstep import Lockstep
from rlhf_ray.rollout.requests import Completion, GenerationRequest, sample_seed
from rlhf_ray.rollout.single_turn import Sampling, checked_completions
from rlhf_ray.rollout.transcript import Transcript

# Engines take signed 64-bit seeds; environments of others mostly 32 bits.
_TURN_SEED_BITS, _ENVIRONMENT_SEED_BITS = 62, 31


@dataclass(frozen=True, slots=True)
class TurnLimits:
    """The ends of an episode that nobody ends."""

    max_turns: int
    """Turns of the policy."""
    max_prompt_tokens: int
    """Tokens before the policy's first turn."""
    max_turn_tokens: int | None = None
    """Tokens of one turn of the policy; None: as many as the response may have."""


class Episodes:
    """Plays an episode for each sample of a task; the response is all that comes after the prompt.

    The policy's tokens stay as the engine wrote them; between two turns stands what the chat template puts there. A
    turn that its limit cut is not shown to the environment, and what does not fit is not appended: both end the episode
    at `length`. An environment that fails ends it at `error`, without a reward.
    """

    def __init__(
        self,
        environments: Environments,
        encoder: Encoder,
        sampling: Sampling,
        limits: TurnLimits,
        *,
        together: bool = False,
    ) -> None:
        """Take the parts, and try the chat template.

        Args:
            environments: where each episode gets its own.
            encoder: of the policy.
            sampling: settings of each turn; `max_tokens` is that of the whole response.
            limits: where an episode ends at the latest.
            together: whether the episodes of a task ask the engine at the same time, as in deterministic mode.

        Raises:
            BadInput: the chat template has nothing between two turns, or no form of calls that can be read.
        """
        self._environments = environments
        self._together = together
        calls = CallParser(encoder, environments.tools) if environments.tools else None
        self._rules = _Rules(encoder, TurnBorders(encoder), calls, sampling, limits, environments.gives_rewards)

    async def __call__(self, generate: Generate, task: RolloutTask) -> list[Sample]:
        """Play `task.samples` episodes, all of which begin alike."""
        lockstep = Lockstep(task.samples) if self._together else None
        players = [asyncio.ensure_future(self._play(generate, task, i, lockstep)) for i in range(task.samples)]
        try:
            return list(await asyncio.gather(*players))
        finally:
            # All have ended when one has failed, so that the next attempt begins alone.
            for player in players:
                player.cancel()
            await asyncio.gather(*players, return_exceptions=True)

    async def _play(self, generate: Generate, task: RolloutTask, index: int, lockstep: Lockstep | None) -> Sample:
        game = _Game(self._rules, generate, task, index, lockstep)
        try:
            async with self._environments.open() as environment:
                await game.play(environment)
        except EnvironmentFailed as failure:
            game.failed(failure)
        finally:
            if lockstep is not None:
                lockstep.leave()
        return game.sample()


@dataclass(frozen=True, slots=True)
class _Rules:
    """All that the episodes of a rollout have in common."""

    encoder: Encoder
    borders: TurnBorders
    calls: CallParser | None
    """Reads calls of tools; None where there are none."""
    sampling: Sampling
    limits: TurnLimits
    gives_rewards: bool


class _Game:
    """One episode."""

    def __init__(
        self, rules: _Rules, generate: Generate, task: RolloutTask, index: int, lockstep: Lockstep | None
    ) -> None:
        self._encoder, self._borders, self._rules = rules.encoder, rules.borders, rules
        self._sampling, self._limits = rules.sampling, rules.limits
        self._generate, self._task, self._index, self._lockstep = generate, task, index, lockstep
        self._transcript = Transcript(task.prompt.prompt_ids)
        self._episode = Episode(reward=0.0 if rules.gives_rewards else None)
        self._finish: FinishReason = "turns"

    async def play(self, environment: Environment) -> None:
        """Take turns until one side ends it, or a limit is reached.

        Raises:
            EnvironmentFailed: it did not do its part.
        """
        seed = self._task.seed % 2**_ENVIRONMENT_SEED_BITS
        self._begin(await environment.reset(self._task.prompt, seed))
        for turn in range(self._limits.max_turns):
            completion, said = await self._ask(turn)
            self._episode.turns.append(said)
            if completion.finish_reason == "length":
                self._finish = "length"
                return
            answer = await environment.step(said)
            self._episode.turns += answer.messages
            if self._rules.gives_rewards:
                self._transcript.reward(answer.reward)
                self._episode.reward = self._transcript.total_reward()
            if answer.ended:
                self._finish = "stop"
                return
            if turn + 1 < self._limits.max_turns and not self._hear(completion, answer.messages):
                self._finish = "length"
                return

    def failed(self, failure: EnvironmentFailed) -> None:
        """Note that the environment failed: nothing that it gave counts."""
        self._finish = "error"
        self._episode.reward = None
        self._episode.failure = failure.kind, str(failure)

    def sample(self) -> Sample:
        """Return the episode as it stands."""
        transcript, prompt = self._transcript, self._task.prompt
        if not transcript.length:
            # It failed before the first turn, and no batch has room for nothing.
            transcript.hear(np.array([self._encoder.eos], np.int32))
        response_ids = transcript.response_ids()
        return Sample(
            prompt_id=prompt.prompt_id,
            group_id=self._task.group_id,
            index=self._index,
            attempt=self._task.attempt + transcript.attempt,
            seed=sample_seed(self._task.seed, self._index),
            prompt=prompt.prompt,
            response=self._encoder.response(
                prompt.prompt,
                transcript.prompt_ids,
                response_ids,
                ended=self._finish in ("stop", "turns"),
                skip_special_tokens=self._sampling.skip_special_tokens,
            ),
            prompt_ids=transcript.prompt_ids,
            response_ids=response_ids,
            written=transcript.written(),
            behaviour_logprobs=transcript.logprobs(),
            weight_versions=transcript.spans,
            finish_reason=self._finish,
            extras={TURN_REWARDS: transcript.turn_rewards()},
            columns=prompt.columns,
            episode=self._episode,
        )

    def _begin(self, opening: Sequence[Message]) -> None:
        """Put what the environment says first behind the prompt."""
        if not opening:
            return
        prompt, longest = self._task.prompt.prompt, self._limits.max_prompt_tokens
        try:
            ids = self._encoder.prompt([*_messages(prompt), *opening])
        except BadRow as error:
            raise _unreadable("reset", error) from error
        if len(ids) > longest:
            found = f"with what reset returned, the prompt has {len(ids)} tokens"
            raise EnvironmentFailed("malformed answer", f"{found}, more than data.max_prompt_tokens, {longest}")
        self._episode.turns += opening
        self._transcript.prompt_ids = ids

    async def _ask(self, turn: int) -> tuple[Completion, Message]:
        """Let the policy take its next turn, and return it as it was written and as a message; `turn` counts from 0."""
        together = 1 if self._lockstep is None else await self._lockstep.meet()
        how, task = self._sampling, self._task
        left = how.max_tokens - self._transcript.length
        read = self._transcript.context
        greedy = task.greedy_last and self._index == task.samples - 1
        request = GenerationRequest(
            request_id=f"{task.request_id}/{self._index}/{turn}",
            prompt_ids=read,
            n=1,
            seed=turn_seed(task.seed, self._index, turn),
            max_tokens=min(left, self._limits.max_turn_tokens or left),
            temperature=0.0 if greedy else how.temperature,
            stop=how.stop,
            stop_token_ids=tuple(self._encoder.ends),
        )
        result = await self._generate(request, together=together)
        [completion] = checked_completions(result, task.prompt.prompt_id, 1)
        self._transcript.write(completion)
        text = self._encoder.response(
            # Only the very first turn may go on with one that the prompt has begun.
            [ASKED] if self._episode.turns else task.prompt.prompt,
            read,
            completion.token_ids,
            ended=completion.finish_reason == "stop",
            skip_special_tokens=how.skip_special_tokens,
        )
        if self._rules.calls is None:
            return completion, {"role": ASSISTANT, "content": text}
        return completion, self._rules.calls.message(text, completion.token_ids, read)

    def _hear(self, completion: Completion, messages: Sequence[Message]) -> bool:
        """Append what was answered and the opening of the next turn; False where no turn would fit behind it."""
        try:
            ids = self._borders.between(messages, ended=self._ended(completion.token_ids))
        except BadRow as error:
            raise _unreadable("step", error) from error
        if self._transcript.length + len(ids) >= self._sampling.max_tokens:
            return False
        self._transcript.hear(ids)
        return True

    def _ended(self, ids: Ids) -> bool:
        """Tell whether a turn's last token ends it; a text that stops it does not."""
        last = int(ids[-1]) if len(ids) else None
        return last in self._borders.ends or last in self._encoder.template.special


def _messages(prompt: Prompt) -> Sequence[Message]:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def _unreadable(method: str, error: BadRow) -> EnvironmentFailed:
    return EnvironmentFailed("malformed answer", f"{method} returned messages that cannot be read: {error}")


def turn_seed(seed: int, index: int, turn: int) -> int:
    """Return the seed of one turn of one episode in [0, 2**62), the same in every process and on every machine."""
    digest = hashlib.blake2b(f"{seed}\n{index}\n{turn}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> (64 - _TURN_SEED_BITS)
