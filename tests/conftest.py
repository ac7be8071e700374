"""Fixtures that several rooms share: small models made from nothing, and one Ray for the whole session."""

import logging
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest

from tests.planted_secrets import plant

if TYPE_CHECKING:
    from xdist.remote import Producer
    from xdist.scheduler import LoadScopeScheduling

plant()

TEXTS = [
    "The film was wonderful and I would watch it again.",
    "这部电影很好看，演员也很棒。",
    "刚收到货，感觉质量一般，有点失望。",
    "The package arrived late and the box was broken.",
    "Great value for the money, my family loves it!",
    "服务态度不错，下次还会再来。",
]


ROOM_OF_ENGINES = "tests/jobs/"
"""Its tests share engines and whole runs for a session, so that one process has all of them."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: "Producer") -> "LoadScopeScheduling":
    """Keep tests together that share what is slow to start, where processes share the suite (`make test`)."""
    from xdist.scheduler import LoadScopeScheduling

    class ByRoom(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return ROOM_OF_ENGINES if nodeid.startswith(ROOM_OF_ENGINES) else nodeid.split("::")[0]

    return ByRoom(config, log)


START_SECONDS = 240
"""In which Ray starts on a busy machine; a test has 600."""


@dataclass(frozen=True)
class TinyModel:
    """Directories of small Qwen2 models that share one tokenizer, and the texts it learned from."""

    tied: Path
    untied: Path
    texts: tuple[str, ...]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    from rlhf_ray.models.tiny import build_tiny

    directory = tmp_path_factory.mktemp("models")
    # Weights larger than a fresh model's make log-probabilities differ visibly from token to token.
    return TinyModel(
        tied=build_tiny(directory / "tied", TEXTS, tie=True, initializer_range=0.08),
        untied=build_tiny(directory / "untied", TEXTS, tie=False, initializer_range=0.08),
        texts=tuple(TEXTS),
    )


@pytest.fixture(scope="session")
def tiny_reward_model(tiny_model: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a reward model that learned nothing yet, with the tokenizer of `tiny_model`."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, set_seed

    directory = tmp_path_factory.mktemp("models") / "reward"
    set_seed(1)
    network = AutoModelForSequenceClassification.from_pretrained(tiny_model.tied, num_labels=1, dtype="float32")
    network.score.weight.data.mul_(2)
    network.save_pretrained(directory)
    AutoTokenizer.from_pretrained(tiny_model.tied).save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small BERT that learned nothing yet, with a tokenizer of its own."""
    from tests.tiny_encoder import build_tiny_encoder

    return build_tiny_encoder(tmp_path_factory.mktemp("models") / "encoder", TEXTS)


@pytest.fixture(scope="session")
def start_ray() -> Iterator[Callable[[], None]]:
    """Start the Ray that all tests share unless it runs; jobs and `connect` join it, as any session that is open."""

    def start() -> None:
        import ray

        from rlhf_ray.cluster.session import quieten_ray, start_patiently

        if ray.is_initialized():
            return
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        quieten_ray()
        settings = {
            "address": "local",
            "num_cpus": 8,
            "num_gpus": 4,
            "include_dashboard": False,
            "log_to_driver": False,
            "logging_level": logging.ERROR,
            "object_store_memory": 400 * 2**20,
            "_system_config": {"worker_niceness": 0},
        }
        start_patiently(lambda: ray.init(**settings), START_SECONDS)

    yield start
    if "ray" in sys.modules:
        sys.modules["ray"].shutdown()


@pytest.fixture(scope="module")
def ray_session(start_ray: Callable[[], None]) -> None:
    """A Ray of 8 logical CPUs and 4 GPUs that exist only in its books."""
    start_ray()
