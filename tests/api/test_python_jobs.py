"""Jobs from Python: what is read, what is refused and how; the work itself is that of the command."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import rlhf_ray
from rlhf_ray.config.jobs.ppo import PPOConfig
from rlhf_ray.config.jobs.supervised import SFTConfig
from tests.test_cli import HEAVY

SFT = {"output": "outputs/sft", "model": {"path": "some/model"}, "data": {"path": "some/data"}}
PPO = {**SFT, "rewards": [{"kind": "model", "path": "some/reward"}]}


class Worker:
    """In the place of a job's module."""

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.error: BaseException | None = None

    def run(self, config: Any) -> None:
        self.seen.append(config)
        if self.error:
            raise self.error
        Path(config.output).mkdir(parents=True)


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Worker]:
    monkeypatch.chdir(tmp_path)
    worker = Worker()
    monkeypatch.setitem(sys.modules, "rlhf_ray.jobs.supervised.sft", worker)  # type: ignore[arg-type]
    return worker


def test_importing_the_package_loads_nothing() -> None:
    script = (
        f"import rlhf_ray, sys; dir(rlhf_ray); print([n for n in {(*HEAVY, 'pydantic', 'yaml')!r} if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_every_public_name_is_there_and_documented() -> None:
    for name in set(rlhf_ray.__all__) - {"__version__"}:
        assert getattr(rlhf_ray, name).__doc__
    assert set(rlhf_ray.__all__) <= set(dir(rlhf_ray))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = rlhf_ray.nothing


def test_a_mapping_a_file_and_a_config_are_read_alike(tmp_path: Path) -> None:
    file = tmp_path / "sft.yaml"
    file.write_text("output: outputs/sft\nmodel: {path: some/model}\ndata: {path: some/data}\n")
    config = rlhf_ray.read_config(SFT, verb="sft")
    assert isinstance(config, SFTConfig)
    assert config == rlhf_ray.read_config(config)
    assert config == rlhf_ray.read_config(file, verb="sft") == rlhf_ray.read_config(str(file), verb="sft")


def test_the_job_is_found_by_the_keys() -> None:
    assert isinstance(rlhf_ray.read_config(PPO), PPOConfig)


def test_overrides_win_and_leave_the_mapping_as_it_was() -> None:
    config = rlhf_ray.read_config(PPO, {"steps": 3, "policy.learning_rate": 1e-4, "rewards.0.weight": 2})
    assert (config.steps, config.policy.learning_rate, config.rewards[0].weight) == (3, 1e-4, 2)  # type: ignore[attr-defined]
    assert "weight" not in PPO["rewards"][0]  # type: ignore[index]


def test_paths_and_sections_may_stand_in_a_mapping() -> None:
    from rlhf_ray.config.data import TextDataConfig

    config = rlhf_ray.read_config({**SFT, "output": Path("runs") / "a", "data": TextDataConfig(path="some/data")})
    assert (config.output, config.data.path) == ("runs/a", "some/data")  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("config", "overrides", "verb", "message"),
    [
        ({**SFT, "epoch": 1}, {}, None, "epoch: unknown key. Perhaps you meant epochs?"),
        (SFT, {"epoch": 1}, "sft", "epoch: unknown key. Perhaps you meant epochs?"),
        (SFT, {"epochs": "many"}, "sft", "epochs: input should be a valid number"),
        (SFT, {}, "stf", "verb: no job is called 'stf'. Perhaps you meant sft?"),
        (PPO, {}, "sft", "config: a config for rlhf ppo, not for rlhf sft; run it by its own verb, or give another"),
        ("nowhere.yaml", {}, None, "nowhere.yaml: no such file"),
        (7, {}, None, "config: a path, a mapping or a config of this package, not int"),
        ({**SFT, "data": {"path": "./rows.jsonl"}}, {}, "sft", "data.path: no such file or directory: ./rows.jsonl"),
    ],
)
def test_a_mistake_is_raised_with_its_key(
    config: Any, overrides: dict[str, Any], verb: str | None, message: str, worker: Worker
) -> None:
    with pytest.raises(rlhf_ray.BadInput) as error:
        rlhf_ray.run(config, overrides, verb=verb)
    assert str(error.value).startswith(message)
    assert len(str(error.value).splitlines()) == 1
    assert worker.seen == []


def test_a_config_that_fits_several_jobs_needs_the_verb() -> None:
    both = {"store": "x.db", "output": "y", "model": {"path": "m"}, "data": {"path": "d"}}
    settings = {key: both[key] for key in ("output", "model", "data")}
    with pytest.raises(rlhf_ray.BadInput, match=r"config: fits sft and .*; name the job, such as: verb='sft'"):
        rlhf_ray.read_config(settings)
    assert isinstance(rlhf_ray.read_config(settings, verb="sft"), SFTConfig)


def test_a_job_gives_its_results_back(worker: Worker) -> None:
    run = rlhf_ray.run(SFT, {"epochs": 2}, verb="sft")
    assert [config.epochs for config in worker.seen] == [2]
    assert run.path == Path("outputs/sft").resolve()
    assert (run.status, run.model_path, run.metrics) == (None, None, [])


@pytest.mark.parametrize("error", [rlhf_ray.RlhfError("the disk is full"), rlhf_ray.Interrupted("interrupted")])
def test_a_failure_is_raised_and_the_process_lives(worker: Worker, error: rlhf_ray.RlhfError) -> None:
    worker.error = error
    with pytest.raises(type(error), match=str(error)):
        rlhf_ray.run(SFT, verb="sft")


def test_it_runs_where_an_event_loop_runs(worker: Worker) -> None:
    async def cell() -> rlhf_ray.Run:
        return rlhf_ray.run(SFT, verb="sft")

    assert asyncio.run(cell()).path.is_dir()
