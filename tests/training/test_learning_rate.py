import pytest

from rlhf_ray.config.training import TrainerConfig
from rlhf_ray.training.optimizer import learning_rate


def peak_of_one(shape, warmup):
    return TrainerConfig(learning_rate=1.0, warmup_steps=warmup, schedule=shape)


def rates(shape, warmup=3, total=8):
    trainer = peak_of_one(shape, warmup)
    return [learning_rate(step, trainer, total) for step in range(total + 1)]


def test_warmup_rises_evenly_and_constant_stays():
    assert rates("constant") == [0.25, 0.5, 0.75] + [1.0] * 6


@pytest.mark.parametrize("shape", ["linear", "cosine"])
def test_decay_starts_at_the_peak_and_ends_at_zero(shape):
    found = rates(shape)
    assert found[3] == 1.0
    assert found[-1] == pytest.approx(0.0)
    assert found[3:] == sorted(set(found[3:]), reverse=True)
    assert learning_rate(100, peak_of_one(shape, 3), 8) == pytest.approx(0.0)


def test_linear_is_linear():
    assert rates("linear", warmup=0, total=4) == [1.0, 0.75, 0.5, 0.25, 0.0]


def test_warmup_longer_than_the_run():
    assert learning_rate(4, peak_of_one("cosine", 10), 5) == pytest.approx(5 / 11)
