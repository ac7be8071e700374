"""The real vLLM engine on CPU: what it samples and scores, and weights that change under it."""

import multiprocessing
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from rlhf_ray.models.tiny import build_tiny
from rlhf_ray.rollout.engine import EngineDirty
from rlhf_ray.rollout.requests import Completion, GenerationRequest
from rlhf_ray.training.process import RankDeadlines, join
from rlhf_ray.transfer.errors import ManifestMismatch, SyncMismatch, TransferError
from rlhf_ray.transfer.group import TransferGroup
from rlhf_ray.transfer.manifest import Manifest
from rlhf_ray.transfer.sender import WeightSender
from rlhf_ray.transfer.source import DeepSpeedWeightSource
from rlhf_ray.transfer.verification import Tolerance, compare_scores, probe_sequences
from tests.leftovers import nothing_left
from tests.rollout.engine_host import Host, collect

VOCABULARY = 512
TEXTS = ["The film was wonderful and I would watch it again.", "刚收到货，感觉质量一般，有点失望。"]
PROBES = probe_sequences(VOCABULARY, [np.arange(5, 100), np.array([7, 300, 7])])
TOLERANCE = Tolerance(largest=1e-4, mean=1e-5)
LIMIT = TOLERANCE.largest


class Trainer:
    """A model on the trainer's side, with the sender of its weights."""

    def __init__(self, path: Path, seconds: float = 60) -> None:
        from transformers import AutoModelForCausalLM

        self.model: nn.Module = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        self.source = DeepSpeedWeightSource(self.model, "float32", 2**18)
        self.sender = WeightSender(self.source, "gloo", rank=0, seconds=seconds)
        self._generation = 0

    def connect(self, *hosts: Host) -> TransferGroup:
        self._generation += 1
        group = self.sender.open(self._generation, [host.engine.workers for host in hosts], "127.0.0.1")
        joined = [host.submit(host.engine.connect_transfer(group, index)) for index, host in enumerate(hosts)]
        self.sender.join()
        for call in joined:
            call.result(60)
        return group

    def sync(self, version: int, *hosts: Host) -> list[dict[str, float]]:
        received = [host.submit(host.engine.receive(self.source.manifest, version)) for host in hosts]
        self.sender.send()
        return [call.result(60) for call in received]

    def change(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.03)

    def score(self, sequences: list[np.ndarray] = PROBES) -> list[np.ndarray]:
        return [logprobs(self.model, ids) for ids in sequences]


@torch.no_grad()
def logprobs(model: nn.Module, ids: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    tokens = torch.as_tensor(np.asarray(ids), dtype=torch.long)[None]
    distribution = torch.log_softmax(model(tokens).logits[0, :-1].float() / temperature, dim=-1)
    return distribution.gather(-1, tokens[0, 1:, None])[:, 0].numpy()


def difference(one: list[np.ndarray], other: list[np.ndarray]) -> float:
    return float(np.abs(np.concatenate(one) - np.concatenate(other)).max())


def written_logprobs(model: nn.Module, prompt: np.ndarray, completion: Completion, temperature: float) -> np.ndarray:
    ids = np.concatenate([prompt, completion.token_ids])
    return logprobs(model, ids, temperature)[len(prompt) - 1 :]


def make_requests(count: int, **changes: Any) -> list[GenerationRequest]:
    random = np.random.default_rng(0)
    return [
        GenerationRequest(
            **{
                "request_id": f"r{i}",
                "prompt_ids": random.integers(5, VOCABULARY, 3 + 5 * i, dtype=np.int32),
                "n": 3,
                "seed": 1000 * i,
                "max_tokens": 24,
                **changes,
            }
        )
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    directory = tmp_path_factory.mktemp("engine")
    # Two heads of 32: vLLM's CPU attention has no smaller ones.
    options: dict[str, Any] = {"heads": 2, "vocab_size": VOCABULARY, "initializer_range": 0.08}
    return {tie: build_tiny(directory / f"tie_{tie}", TEXTS, tie=tie, **options) for tie in (True, False)}


def host_fixture(tie: bool, **rollout: Any) -> Any:
    @pytest.fixture(scope="module")
    def host(models: dict[bool, Path]) -> Iterator[Host]:
        with nothing_left(), closing(Host(models[tie], **rollout)) as running:
            yield running

    return host


tied = host_fixture(True)
untied = host_fixture(False)
parallel = host_fixture(True, tensor_parallel=2)


@pytest.fixture(params=["tied", "untied"])
def any_host(request: pytest.FixtureRequest) -> Host:
    return request.getfixturevalue(request.param)


def test_fresh_engine_scores_as_transformers(any_host: Host):
    if any_host.engine.version != 0:
        pytest.skip("another test gave this engine other weights: run the tests of this file in their order")
    assert difference(any_host.score(PROBES), Trainer(any_host.path).score()) < LIMIT


def test_scores_follow_each_sync(any_host: Host):
    trainer = Trainer(any_host.path)
    trainer.connect(any_host)
    for version in (1, 2):
        before = any_host.score(PROBES)
        trainer.change(seed=version)
        assert difference(before, trainer.score()) > 100 * LIMIT
        (timings,) = trainer.sync(version, any_host)
        assert timings.keys() == {"pause", "wire", "load", "receive"}
        assert timings["wire"] + timings["load"] <= timings["pause"] <= timings["receive"]
        assert any_host.engine.version == version
        compare_scores(trainer.score(), any_host.score(PROBES), TOLERANCE, dtype="float32", version=version)


def test_verification_catches_a_wrong_weight(any_host: Host):
    trainer = Trainer(any_host.path)
    trainer.connect(any_host)
    trainer.sync(3, any_host)
    with torch.no_grad():
        trainer.model.get_parameter("model.layers.1.mlp.down_proj.weight")[3, 5] += 1.0
    with pytest.raises(SyncMismatch, match="version 3"):
        compare_scores(trainer.score(), any_host.score(PROBES), TOLERANCE, dtype="float32", version=3)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_log_probabilities_are_those_of_the_sampling_distribution(tied: Host, temperature: float):
    trainer = Trainer(tied.path)
    trainer.connect(tied)
    trainer.sync(4, tied)
    requests = make_requests(3, temperature=temperature)
    for request in requests:
        completions = tied.generate([request])[request.request_id]
        assert [completion.index for completion in completions] == [0, 1, 2]
        assert len({tuple(completion.token_ids) for completion in completions}) == 3
        for completion in completions:
            expected = written_logprobs(trainer.model, request.prompt_ids, completion, temperature)
            assert np.abs(expected - completion.logprobs).max() < LIMIT
            assert completion.weight_spans[0].version == 4
            assert len(completion.token_ids) == 24 or completion.finish_reason == "stop"


def test_queued_requests_repeat_bit_for_bit(tied: Host):
    first, second = (tied.generate(make_requests(6), queued=True) for _ in range(2))
    for name, completions in first.items():
        for one, other in zip(completions, second[name], strict=True):
            assert np.array_equal(one.token_ids, other.token_ids)
            assert np.array_equal(one.logprobs, other.logprobs)


def test_samples_of_a_request_depend_on_their_seed_alone(tied: Host):
    def sampled(seed: int) -> list[Completion]:
        return tied.generate(make_requests(1, seed=seed, ignore_eos=True), queued=True)["r0"]

    assert np.array_equal(sampled(7)[1].token_ids, sampled(8)[0].token_ids)
    assert not np.array_equal(sampled(7)[0].token_ids, sampled(8)[0].token_ids)


def test_stop_tokens_and_texts_end_a_completion(tied: Host):
    (request,) = make_requests(1, n=1, ignore_eos=True)
    free = tied.generate([request], queued=True)["r0"][0]
    stop = int(free.token_ids[5])
    first = int(np.flatnonzero(free.token_ids == stop)[0])
    (request,) = make_requests(1, n=1, ignore_eos=True, stop_token_ids=(stop,))
    ended = tied.generate([request], queued=True)["r0"][0]
    assert ended.finish_reason == "stop"
    assert np.array_equal(ended.token_ids, free.token_ids[: first + 1])


def test_tokens_know_which_weights_wrote_them(tied: Host):
    old, trainer = Trainer(tied.path), Trainer(tied.path)
    trainer.connect(tied)
    trainer.sync(5, tied)
    trainer.change(seed=9)
    (request,) = make_requests(1, n=2, max_tokens=200, ignore_eos=True)
    running = tied.submit(collect(tied.engine, [request], queued=False))
    threading.Event().wait(0.1)
    trainer.sync(6, tied)
    for completion in running.result(60)["r0"]:
        before, after = completion.weight_spans
        assert (before.version, after.version) == (5, 6)
        assert 0 == before.start < before.end == after.start < after.end == 200
        for model, span in ((old.model, before), (trainer.model, after)):
            expected = written_logprobs(model, request.prompt_ids, completion, 1.0)
            part = slice(span.start, span.end)
            assert np.abs(expected[part] - completion.logprobs[part]).max() < LIMIT


def test_requests_are_answered_until_the_first_bucket_is_gathered(tied: Host):
    trainer = Trainer(tied.path)
    trainer.connect(tied)
    trainer.change(seed=14)
    before = tied.engine.version
    receiving = tied.submit(tied.engine.receive(trainer.source.manifest, 14))
    while_gathering = tied.submit(collect(tied.engine, make_requests(2, max_tokens=8), queued=False))
    for completions in while_gathering.result(20).values():
        assert {span.version for completion in completions for span in completion.weight_spans} == {before}
    assert not receiving.done()
    trainer.sender.send()
    receiving.result(60)
    assert difference(tied.score(PROBES), trainer.score()) < LIMIT


def test_a_transfer_that_does_not_begin_leaves_the_engine_with_its_weights(tied: Host):
    trainer = Trainer(tied.path, seconds=1)
    trainer.connect(tied)
    before = tied.score(PROBES)
    with pytest.raises(TransferError, match="version 8: not done within 1 s"):
        tied.run(tied.engine.receive(trainer.source.manifest, 8))
    assert difference(before, tied.score(PROBES)) == 0


def test_no_answer_reads_what_older_weights_left_in_the_prefix_cache(tied: Host):
    """The score of a fixed text, which each sync checks, bypasses that cache."""
    trainer = Trainer(tied.path)
    trainer.connect(tied)
    prompt = np.random.default_rng(0).integers(5, VOCABULARY, 220).astype(np.int32)
    for version in (31, 32):
        trainer.change(seed=version)
        trainer.sync(version, tied)
        for number in range(2):  # the second finds the first's prompt in the cache
            (request,) = make_requests(1, n=1, max_tokens=16, ignore_eos=True)
            request = replace(request, prompt_ids=prompt, temperature=0.0, request_id=f"{version}/{number}")
            (completion,) = tied.generate([request])[request.request_id]
            expected = written_logprobs(trainer.model, prompt, completion, 1.0)
            assert np.abs(expected - completion.logprobs).max() < LIMIT


def test_other_tensors_are_refused_and_change_nothing(tied: Host):
    trainer = Trainer(tied.path)
    trainer.connect(tied)
    before = tied.score(PROBES)
    fewer = Manifest.build(trainer.source.manifest.tensors[:-1], 2**18)
    with pytest.raises(ManifestMismatch, match="not those of transfer group"):
        tied.run(tied.engine.receive(fewer, 7))
    assert difference(before, tied.score(PROBES)) == 0


def test_another_model_is_refused(tied: Host, models: dict[bool, Path]):
    trainer = Trainer(models[False])
    trainer.connect(tied)
    with pytest.raises(ManifestMismatch, match=r"unknown to the engine: lm_head\.weight"):
        tied.run(tied.engine.receive(trainer.source.manifest, 7))


@pytest.mark.parametrize("buckets_sent", [0, 1])
def test_dirty_engine_serves_nothing_until_a_clean_transfer(any_host: Host, buckets_sent: int):
    trainer = Trainer(any_host.path, seconds=2)
    trainer.connect(any_host)
    trainer.change(seed=3)
    receiving = any_host.submit(any_host.engine.receive(trainer.source.manifest, 8))
    send_some(trainer, buckets_sent)
    with pytest.raises(TransferError, match="version 8"):
        receiving.result(60)
    for use in (any_host.engine.score(PROBES), collect(any_host.engine, make_requests(1), queued=False)):
        with pytest.raises(EngineDirty, match="serves nothing"):
            any_host.run(use)
    trainer = Trainer(any_host.path)
    trainer.connect(any_host)
    trainer.sync(9, any_host)
    assert difference(any_host.score(PROBES), trainer.score()) < LIMIT
    assert any_host.generate(make_requests(1)).keys() == {"r0"}


def send_some(trainer: Trainer, buckets: int) -> None:
    """Send the first buckets of a transfer and then nothing."""
    trainer.sender._begin(torch.device("cpu"))
    for index, bucket in zip(range(buckets), trainer.source.buckets(keep=True), strict=False):
        trainer.sender._transport.send(bucket, index)


def test_two_engines_with_different_workers_follow_one_trainer(tied: Host, parallel: Host):
    assert (tied.engine.workers, parallel.engine.workers) == (1, 2)
    trainer = Trainer(tied.path)
    trainer.connect(tied, parallel)
    for version in (10, 11):
        trainer.change(seed=version)
        trainer.sync(version, tied, parallel)
        for host in (tied, parallel):
            assert difference(host.score(PROBES), trainer.score()) < LIMIT
    trainer.connect(parallel)
    trainer.change(seed=12)
    trainer.sync(12, parallel)
    assert difference(parallel.score(PROBES), trainer.score()) < LIMIT
    assert difference(tied.score(PROBES), trainer.score()) > LIMIT


def zero3_rank(rank: int, port: int, path: Path, from_parent: Any, to_parent: Any) -> None:
    """A trainer rank under ZeRO 3 that changes the weights, scores the probes and sends."""
    torch.set_num_threads(1)
    join(rank, 2, ("127.0.0.1", port), torch.device("cpu"), RankDeadlines(60, 60, 60))
    import deepspeed
    from transformers import AutoModelForCausalLM

    config = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
        "optimizer": {"type": "AdamW", "params": {"lr": 0.02, "torch_adam": True}},
    }
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    engine, *_ = deepspeed.initialize(model=model, model_parameters=model.parameters(), config=config)
    ids = torch.arange(5, 69)[None]
    engine.backward(engine(ids, labels=ids).loss)
    engine.step()
    scores = [logprobs(engine, probe) for probe in PROBES]
    sender = WeightSender(DeepSpeedWeightSource(engine.module, "float32", 2**17), "gloo", rank=rank, seconds=60)
    if rank == 0:
        to_parent.put((scores, sender.manifest, sender.open(1, [1], "127.0.0.1")))
        sender.join()
    from_parent.get(timeout=60)
    to_parent.put(sender.send())
    from_parent.get(timeout=60)


def test_weights_sharded_by_zero_3_arrive_whole(untied: Host):
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with spawned_ranks(zero3_rank, port, untied.path) as (to_ranks, from_ranks):
        scores, manifest, group = from_ranks[0].get(timeout=120)
        untied.run(untied.engine.connect_transfer(group, 0))
        receiving = untied.submit(untied.engine.receive(manifest, 13))
        for queue in to_ranks:
            queue.put("send")
        receiving.result(60)
        assert all(queue.get(timeout=60)["gather"] > 0 for queue in from_ranks)
    assert difference(scores, Trainer(untied.path).score()) > 100 * LIMIT
    assert difference(untied.score(PROBES), scores) < LIMIT


class spawned_ranks:  # noqa: N801
    """Two processes that run a function with their rank, and a queue in each direction."""

    def __init__(self, function: Callable[..., None], *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self.queues = [[context.Queue() for _ in range(2)] for _ in range(2)]
        self.processes = [
            context.Process(target=function, args=(rank, *arguments, *(queues[rank] for queues in self.queues)))
            for rank in range(2)
        ]

    def __enter__(self) -> list[list[Any]]:
        for process in self.processes:
            process.start()
        return self.queues

    def __exit__(self, *error: object) -> None:
        for process, queue in zip(self.processes, self.queues[0], strict=True):
            queue.put("end")
            process.join(20)
            process.kill()
