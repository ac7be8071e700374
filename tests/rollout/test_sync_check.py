"""What the check after a sync lets pass and what it stops: the real engine in bfloat16, with logits of real size."""

import copy
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import closing
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from rlhf_ray.config.lora import LoraConfig
from rlhf_ray.config.model import ModelConfig
from rlhf_ray.config.training import TrainerConfig
from rlhf_ray.models.lora import add_adapter
from rlhf_ray.models.tiny import build_tiny
from rlhf_ray.roles import policy_sync
from rlhf_ray.roles.policy_sync import WeightSync
from rlhf_ray.roles.trainer import TrainerActor
from rlhf_ray.transfer.errors import SyncMismatch
from rlhf_ray.transfer.verification import probe_sequences
from tests.leftovers import nothing_left
from tests.rollout.engine_host import Host

LAYERS, WIDTH, VOCABULARY = 8, 256, 2000
FORMER_LIMIT = 0.1
"""Of any difference in bfloat16, whatever the logits: right weights of real models were beyond it."""
ONE_TENSOR = 1e-4
"""Megabytes of a bucket, so that each tensor travels alone."""
PROMPTS = [np.arange(10 * n + 5, 10 * n + 35, dtype=np.int32) for n in range(8)]
"""Without the padding token: its embedding is 0, and the smallest update of it shows in all that a network computes."""

Weights = dict[str, torch.Tensor]


class Policy:
    """One rank of the real trainer, called by the driver as an actor is."""

    name = "policy"

    def __init__(self, path: Path) -> None:
        model = ModelConfig(path=str(path), dtype="bfloat16")
        self.actor = TrainerActor(
            kind="policy", model=model, trainer=TrainerConfig(), total_steps=1, seed=0, trainable=False
        )
        self.actor.start()
        self.slots = [SimpleNamespace()]
        self._thread = ThreadPoolExecutor(1)
        self.actors = self

    def call(self, method: str, *arguments: Any, **_: Any) -> list[Any]:
        return [getattr(self.actor, method)(*arguments)]

    def call_one(self, _: int, method: str, *arguments: Any, **__: Any) -> Any:
        return getattr(self.actor, method)(*arguments)

    def submit(self, method: str, *arguments: Any) -> "list[Future[Any]]":
        return [self.submit_one(0, method, *arguments)]

    def submit_one(self, _: int, method: str, *arguments: Any) -> "Future[Any]":
        return self._thread.submit(getattr(self.actor, method), *arguments)


class Engines:
    """The engine, likewise."""

    name = "rollout"
    transfer_seconds = 60.0
    cluster = SimpleNamespace(host=lambda *_: "127.0.0.1")

    def __init__(self, host: Host) -> None:
        self._host = host

    def submit_one(self, _: int, method: str, *arguments: Any) -> "Future[Any]":
        call: Future[Any] = self._host.submit(getattr(self._host.engine, method)(*arguments))
        return call


class FaultySync(WeightSync):
    """The driver's sync, with something that happens between transfer and check."""

    fault: Callable[[], Any] = staticmethod(lambda: None)
    by_scores_alone = False

    def _give(self, version: int, members: list[int]) -> dict[str, float]:
        timings = super()._give(version, members)
        self.fault()
        return timings

    def _compare_weights(self, *arguments: Any) -> dict[str, float]:
        return {} if self.by_scores_alone else super()._compare_weights(*arguments)

    def _break_off(self) -> None:
        """Stay connected: what failed here is the check."""


class Rig:
    """Trainer, engine and the sync between them."""

    def __init__(self, path: Path, host: Host) -> None:
        self.host, self.policy = host, Policy(path)
        self.network = self.policy.actor.network
        self.start = copy.deepcopy({name: p.detach() for name, p in self.network.named_parameters()})
        self.master = {name: value.float() for name, value in self.start.items()}
        self.sync = FaultySync(
            self.policy,
            Engines(host),
            engine_workers=[1],
            transport="gloo",
            bucket_bytes=int(ONE_TENSOR * 2**20),
            dtype="bfloat16",
            tolerance=None,
            probes=partial(probe_sequences, VOCABULARY, max_tokens=200),
        )
        self.sync.read(PROMPTS)

    def __call__(self) -> dict[str, float]:
        return self.sync(self.sync.version + 1, [0])

    def reset(self) -> None:
        """Undo faults and changes; trainer and engine agree again."""
        for name in ("fault", "by_scores_alone"):
            self.sync.__dict__.pop(name, None)
        self.sender.__dict__.pop("send", None)
        self.set({name: value.float() for name, value in self.start.items()})
        self()

    @property
    def sender(self) -> Any:
        sender: Any = self.policy.actor._prepared()
        return sender._transport

    @torch.no_grad()
    def set(self, master: Weights) -> None:
        self.master = master
        for name, parameter in self.network.named_parameters():
            parameter.copy_(master[name])

    def update(self, rate: float) -> None:
        """Move each weight by the learning rate, as a step of Adam does: its float32 master, then what is rounded."""
        generator = torch.Generator().manual_seed(1)
        self.set(
            {
                name: value + rate * torch.randn(value.shape, generator=generator).sign()
                for name, value in self.master.items()
            }
        )

    def scale(self, factor: float) -> None:
        self.set(self.master | {"model.norm.weight": self.master["model.norm.weight"] * factor})

    def weights(self) -> Weights:
        return {name: p.detach().clone() for name, p in self.network.named_parameters()}

    def wire_brings(self, other: Weights) -> None:
        """Let these tensors arrive in the place of those of their names."""
        manifest, send = self.policy.actor._prepared().manifest, self.sender.send

        def exchanged(bucket: Sequence[torch.Tensor], index: int) -> None:
            names = [entry.name for entry in manifest.bucket(index)]
            send([other[n].reshape(-1) if n in other else t for n, t in zip(names, bucket, strict=True)], index)

        self.sender.send = exchanged

    def on_the_worker(self, method: str, *arguments: Any) -> None:
        self.host.run(self.host.engine._llm.collective_rpc(method, args=arguments))


def results_of(calls: "Sequence[tuple[Future[Any], Any]]", **_: Any) -> list[Any]:
    """`wait_together` for calls that are futures of threads."""
    refs = [ref for ref, _ in calls]
    done, _ = wait(refs, timeout=60, return_when=FIRST_EXCEPTION)
    for call in done:
        call.result()
    return [ref.result(0) for ref in refs]


@pytest.fixture(scope="module")
def shared_rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    path = build_tiny(
        tmp_path_factory.mktemp("sync_check"),
        ["a text"],
        hidden=WIDTH,
        layers=LAYERS,
        vocab_size=VOCABULARY,
        initializer_range=0.05,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(policy_sync, "wait_together", results_of)
        patch.setattr(policy_sync.ray, "put", lambda value: value)
        extension = {"worker_extension_cls": "tests.rollout.faulty_worker.FaultyWorker"}
        with nothing_left(), closing(Host(path, dtype="bfloat16", engine=extension)) as host:
            yield Rig(path, host)


@pytest.fixture
def rig(shared_rig: Rig) -> Rig:
    shared_rig.reset()
    return shared_rig


@pytest.mark.parametrize("scale", [1, 8, 24])
def test_rounding_passes_at_any_size_of_the_logits(rig: Rig, scale: float):
    rig.scale(scale)
    found = rig()
    assert found["sync/compared_exactly"] == 1
    assert found["sync/logprob_diff_mean"] < found["sync/tolerance_mean"] / 1.5
    assert found["sync/logprob_diff"] < found["sync/tolerance"] / 2
    if scale > 1:
        assert found["sync/largest_logit"] > 28
        assert found["sync/logprob_diff"] > FORMER_LIMIT


def stale_layer(rig: Rig) -> None:
    before = rig.weights()
    rig.update(1e-3)
    rig.wire_brings({name: value for name, value in before.items() if ".layers.3." in name})


def swapped_buckets(rig: Rig) -> None:
    one, other = (f"model.layers.{n}.self_attn.o_proj.weight" for n in (2, 5))
    weights = rig.weights()
    rig.wire_brings({one: weights[other], other: weights[one]})


def swapped_within_a_layer(rig: Rig) -> None:
    one, other = (f"model.layers.4.self_attn.{n}_proj.weight" for n in "qo")
    weights = rig.weights()
    rig.wire_brings({one: weights[other], other: weights[one]})


def stale_head(rig: Rig, rate: float = 1e-3) -> None:
    rig.on_the_worker("remember", "lm_head")
    rig.update(rate)
    rig.sync.fault = lambda: rig.on_the_worker("put_back")


def stale_product(rig: Rig) -> None:
    rig.on_the_worker("remember", "model.layers.6.mlp.gate_up_proj")
    rig.update(1e-3)
    rig.sync.fault = lambda: rig.on_the_worker("put_back")


def step_before(rig: Rig, rate: float = 1e-6) -> None:
    before = rig.weights()
    rig.update(rate)
    rig.wire_brings(before)


def spoiled_engine(rig: Rig) -> None:
    rig.sync.fault = lambda: rig.on_the_worker("spoil")


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (stale_layer, r"layers\.3\..* did not arrive as they were sent"),
        (swapped_buckets, "layers.2.self_attn.o_proj.weight, .* did not arrive as they were sent"),
        (swapped_within_a_layer, r"4.self_attn.o_proj.weight, .*q_proj.weight did not arrive"),
        (stale_head, "lm_head are computed with other weights"),
        (stale_product, "layer 6 hold other weights than came"),
        (step_before, "did not arrive as they were sent"),
        (partial(stale_head, rate=1e-6), "lm_head are computed with other weights"),
        (spoiled_engine, "outside of the layers hold other weights"),
    ],
)
def test_wrong_weights_stop_the_run(rig: Rig, fault: Callable[[Rig], None], message: str):
    rig.scale(8)
    rig()
    fault(rig)
    with pytest.raises(SyncMismatch, match=message):
        rig()


@pytest.mark.parametrize(
    "fault", [swapped_buckets, partial(stale_head, rate=5e-3), partial(step_before, rate=1e-3), spoiled_engine]
)
def test_gross_faults_show_in_log_probabilities_too(rig: Rig, fault: Callable[[Rig], None]):
    rig.scale(8)
    rig()
    rig.sync.by_scores_alone = True
    fault(rig)
    with pytest.raises(SyncMismatch, match="log-probabilities of the probe differ"):
        rig()


def test_the_step_of_a_small_rate_is_beyond_log_probabilities(rig: Rig):
    """What only the bits tell: rounding alone moves log-probabilities in bfloat16 by more."""
    rig.scale(8)
    rig()
    rig.sync.by_scores_alone = True
    step_before(rig)
    assert rig()["sync/logprob_diff"] > 0


def test_an_adapter_that_was_not_merged_stops_the_run(rig: Rig):
    """Both sides hold the same bits then, and only the trainer computes with the adapter."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    rig.scale(8)
    rig()
    add_adapter(rig.network, LoraConfig(r=8), seed=0)
    try:
        with torch.no_grad():
            for name, parameter in rig.network.named_parameters():
                if ".lora_B." in name:
                    parameter.normal_(std=0.02)
        with pytest.raises(SyncMismatch, match="log-probabilities of the probe differ"):
            rig()
    finally:
        for name, module in list(rig.network.named_modules()):
            if isinstance(module, BaseTunerLayer):
                rig.network.set_submodule(name, module.base_layer)


def test_weights_that_are_no_numbers_stop_the_run(rig: Rig):
    """On both sides alike. Stands last: what the engine computed from them stays in its cache."""
    weight = rig.master["model.layers.0.mlp.up_proj.weight"].clone()
    weight[5, 7] = float("nan")
    rig.set(rig.master | {"model.layers.0.mlp.up_proj.weight": weight})
    for alone, message in ((False, "layer 0 hold other weights"), (True, "differ by inf in the mean")):
        rig.sync.by_scores_alone = alone
        with pytest.raises(SyncMismatch, match=message):
            rig()
