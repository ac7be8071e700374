"""The moving average of weights: by hand from the weights of each step, at several stages and numbers of ranks."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training_cases import DIVISIONS, TWO_RANKS, run_processes, saved_weights, start, step

DECAY = 0.6
STEPS = 3


def averaged(directory: Path) -> dict[str, torch.Tensor]:
    tensors = {}
    for path in sorted(directory.glob("rank_*.safetensors")):
        tensors |= load_file(path)
    return {name.removeprefix("average/"): value for name, value in tensors.items() if name.startswith("average/")}


def train(rank, world, port, model, out, stage, rows):
    """Steps with their average, each saved; the last state is loaded by a new trainer, which exports it."""
    trainer = start(model, stage, rank=rank, world=world, port=port)
    trainer.average_weights(DECAY)
    trainer.save(str(out / "0"))
    for number in range(1, STEPS + 1):
        step(trainer, rows[rank])
        trainer.average_weights(DECAY)
        trainer.save(str(out / str(number)))
    again = start(model, stage, rank=rank, world=world, port=port)
    again.load(str(out / str(STEPS)))
    again.export(str(out / "export"), average=True)
    again.export(str(out / "last"))


def check(out):
    expected = saved_weights(out / "0")
    for number in range(1, STEPS + 1):
        present = saved_weights(out / str(number))
        expected = {name: DECAY * value + (1 - DECAY) * present[name] for name, value in expected.items()}
        found = averaged(out / str(number))
        assert found.keys() == expected.keys()
        for name, value in found.items():
            torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-6)
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in (out / "export").iterdir()), "others may read a model"
    exported, last = (load_file(out / name / "model.safetensors") for name in ("export", "last"))
    present = saved_weights(out / str(STEPS))
    for name, value in exported.items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-6)
        assert torch.equal(last[name], present[name]), "an export of the average leaves the weights as they are"
    assert any(not torch.equal(exported[name], last[name]) for name in exported)


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_one_rank(tiny_model, tmp_path, stage):
    from rlhf_ray.cluster.endpoint import free_port

    train(0, 1, free_port(), tiny_model.tied, tmp_path, stage, [DIVISIONS["one"]])
    check(tmp_path)


def test_two_ranks(tiny_model, tmp_path):
    run_processes(train, 2, tiny_model.tied, tmp_path, 3, TWO_RANKS)
    check(tmp_path)


def test_a_state_without_an_average_has_none(tiny_model, tmp_path):
    trainer = start(tiny_model.tied)
    step(trainer, DIVISIONS["one"])
    trainer.save(str(tmp_path))
    trainer.average_weights(DECAY)
    trainer.load(str(tmp_path))
    with pytest.raises(RuntimeError, match="no average"):
        trainer.export(str(tmp_path / "out"), average=True)
