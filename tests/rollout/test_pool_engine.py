"""The pool over the real engine in a Ray actor."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from transformers import AutoModelForCausalLM

from rlhf_ray.cluster.worker_environment import worker_environment
from rlhf_ray.config.episodes import PythonEnvironment
from rlhf_ray.config.model import ModelConfig
from rlhf_ray.config.rollout import RolloutConfig
from rlhf_ray.data.records import Message, PromptRecord, Sample, WeightSpan
from rlhf_ray.data.tokenization import Encoder
from rlhf_ray.models.loading import load_tokenizer
from rlhf_ray.models.tiny import build_tiny
from rlhf_ray.rollout.engine import Engine
from rlhf_ray.rollout.episodes import Episodes, TurnLimits
from rlhf_ray.rollout.forked_environments import ForkedEnvironments
from rlhf_ray.rollout.interfaces import PromptBatch, RolloutTask
from rlhf_ray.rollout.pool import RolloutPool
from rlhf_ray.rollout.remote import RemoteEngine
from rlhf_ray.rollout.requests import GenerationRequest
from rlhf_ray.rollout.single_turn import Sampling, SingleTurn
from tests.rollout.fake_engine import signature

TEXTS = ["The film was wonderful and I would watch it again.", "刚收到货，感觉质量一般，有点失望。"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    # vLLM's attention on CPU takes heads of 32 and more. Large weights make log-probabilities differ visibly.
    path = build_tiny(tmp_path_factory.mktemp("model"), TEXTS, hidden=64, heads=2, tie=False, initializer_range=0.08)
    return ModelConfig(path=str(path), dtype="float32")


@pytest.fixture(scope="module")
def engine(model: ModelConfig, ray_session: None) -> Iterator[RemoteEngine]:
    variables = worker_environment([], threads=1, one_node=True)
    actor_class = ray.remote(Engine).options(runtime_env={"env_vars": variables})
    actor = actor_class.remote(model, RolloutConfig(), transport="gloo", index=0, seed=0, max_tokens=256)
    ray.get(actor.start.remote(), timeout=300)
    yield RemoteEngine(actor, 0)
    ray.kill(actor)


@pytest.fixture(scope="module")
def tokenizer(model: ModelConfig) -> Any:
    return load_tokenizer(model)


@pytest.fixture(scope="module")
def reviews(tokenizer: Any) -> list[PromptRecord]:
    texts = [text[: 4 + i] for i in range(12) for text in TEXTS]
    return [PromptRecord(str(i), t, np.array(tokenizer(t)["input_ids"], np.int32)) for i, t in enumerate(texts)]


def collect(pool: RolloutPool, prompts: list[PromptRecord], seed: int = 0) -> list[list[Sample]]:
    return list(pool.run(PromptBatch(prompts, step=0, version=0, samples_per_prompt=2, seed=seed)))


def test_deterministic_mode_gives_the_same_bits_again_and_another_seed_gives_others(
    engine: RemoteEngine, tokenizer: Any, reviews: list[PromptRecord]
) -> None:
    rollout = SingleTurn(Encoder(tokenizer), Sampling(max_tokens=40, temperature=0.8))
    with RolloutPool([engine], rollout, deadline_seconds=300, deterministic=True) as pool:
        runs = [collect(pool, reviews) for _ in range(3)]
        other = collect(pool, reviews, seed=1)
    signatures = [[signature(sample) for group in groups for sample in group] for groups in runs]
    assert signatures[0] == signatures[1] == signatures[2]
    assert [group[0].prompt_id for group in runs[0]] == [prompt.prompt_id for prompt in reviews]
    assert [s.response for group in other for s in group] != [s.response for group in runs[0] for s in group]


GAME = """
from rlhf_ray import Reply


class Talks:
    def reset(self, prompt, seed):
        self.turns = 0

    def step(self, turn):
        self.turns += 1
        return Reply(f"{self.turns}: {turn['content'][:8]}", reward=self.turns, ended=self.turns == 3)
"""


@pytest.mark.parametrize("deterministic", [False, True])
def test_whole_episodes_are_what_the_trainer_computes(
    engine: RemoteEngine, model: ModelConfig, tokenizer: Any, tmp_path: Path, deterministic: bool
) -> None:
    (tmp_path / "game.py").write_text(GAME)
    encoder = Encoder(tokenizer)
    prompt: list[Message] = [{"role": "user", "content": TEXTS[0]}]
    records = [PromptRecord(str(number), prompt, encoder.prompt(prompt)) for number in range(4)]
    limits = TurnLimits(max_turns=5, max_prompt_tokens=64, max_turn_tokens=9)
    # Most turns are cut, since a model that learned nothing seldom ends one; a text that it often writes ends one too.
    sampling = Sampling(max_tokens=120, temperature=0.8, stop=("a", "e", "i", "o", " "))
    with ForkedEnvironments(PythonEnvironment(kind="python", path=f"{tmp_path}/game.py:Talks")) as environments:
        rollout = Episodes(environments, encoder, sampling, limits, together=deterministic)
        with RolloutPool([engine], rollout, deadline_seconds=300, deterministic=deterministic) as pool:
            runs = [[s for group in collect(pool, records) for s in group] for _ in range(2 if deterministic else 1)]
    if deterministic:
        assert list(map(signature, runs[0])) == list(map(signature, runs[1]))
    samples = runs[0]
    policy = AutoModelForCausalLM.from_pretrained(model.path, dtype=torch.float32)
    turns = 0
    for sample in samples:
        whole = torch.from_numpy(np.concatenate([sample.prompt_ids, sample.response_ids]).astype(np.int64))
        with torch.no_grad():
            logits = policy(whole[None]).logits[0, :-1].float() / 0.8
        all_logprobs = torch.log_softmax(logits, -1).gather(-1, whole[1:, None])[:, 0].numpy()
        found = all_logprobs[len(sample.prompt_ids) - 1 :][sample.written]
        assert np.abs(found - sample.behaviour_logprobs[sample.written]).max() < 1e-4
        assert sum(span.end - span.start for span in sample.weight_versions) == sample.written.sum()
        turns += len(sample.weight_versions)
    assert turns > 1.5 * len(samples), "or the test says little of what stands between turns"


def test_samples_hold_what_the_engine_computed(
    engine: RemoteEngine, tokenizer: Any, reviews: list[PromptRecord]
) -> None:
    with RolloutPool([engine], SingleTurn(Encoder(tokenizer), Sampling(max_tokens=12)), deadline_seconds=300) as pool:
        samples = [sample for group in collect(pool, reviews[:3]) for sample in group]
    whole = [np.concatenate([s.prompt_ids, s.response_ids]) for s in samples]
    scored = ray.get(engine._actor.score.remote(whole), timeout=300)
    assert len(samples) == 6
    for sample, logprobs in zip(samples, scored, strict=True):
        # At temperature 1 the behaviour log-probabilities are the model's own.
        np.testing.assert_allclose(sample.behaviour_logprobs, logprobs[len(sample.prompt_ids) - 1 :], atol=1e-5)
        assert sample.weight_versions == [WeightSpan(0, len(sample.response_ids), 0)]
        ended = sample.response_ids[-1] == tokenizer.eos_token_id
        assert sample.finish_reason == ("stop" if ended else "length")
        assert sample.response == tokenizer.decode(sample.response_ids, skip_special_tokens=True)


def test_groups_stream_while_longer_ones_run(engine: RemoteEngine, tokenizer: Any, reviews: list[PromptRecord]) -> None:
    class FirstIsLong(SingleTurn):
        def request(self, task: RolloutTask) -> GenerationRequest:
            return replace(super().request(task), max_tokens=200 if task.prompt.prompt_id == "0" else 4)

    rollout = FirstIsLong(Encoder(tokenizer), Sampling(max_tokens=4, ignore_eos=True))
    with RolloutPool([engine], rollout, deadline_seconds=300) as pool:
        order = [group[0].prompt_id for group in collect(pool, reviews)]
    assert order[-1] == "0"
    assert sorted(order, key=int) == [prompt.prompt_id for prompt in reviews]
