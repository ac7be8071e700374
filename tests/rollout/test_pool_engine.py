"""The pool over the real engine in a Ray actor."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import ray

from rlhf_ray.cluster.worker_environment import worker_environment
from rlhf_ray.config.model import ModelConfig
from rlhf_ray.config.rollout import RolloutConfig
from rlhf_ray.data.records import PromptRecord, Sample, WeightSpan
from rlhf_ray.data.tokenization import Encoder
from rlhf_ray.models.loading import load_tokenizer
from rlhf_ray.models.tiny import build_tiny
from rlhf_ray.rollout.engine import Engine
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
