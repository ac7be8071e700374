import pytest

from rlhf_ray.training.optimizer import learning_rate


def rates(shape, warmup=3, total=8):
    return [learning_rate(step, 2.0, warmup, total, shape) for step in range(total + 1)]


def test_warmup_rises_evenly_and_constant_stays():
    assert rates("constant") == [0.5, 1.0, 1.5] + [2.0] * 6


@pytest.mark.parametrize("shape", ["linear", "cosine"])
def test_decay_starts_at_the_peak_and_ends_at_zero(shape):
    found = rates(shape)
    assert found[3] == 2.0
    assert found[-1] == pytest.approx(0.0)
    assert found[3:] == sorted(set(found[3:]), reverse=True)
    assert learning_rate(100, 2.0, 3, 8, shape) == pytest.approx(0.0)


def test_linear_is_linear():
    assert rates("linear", warmup=0, total=4) == [2.0, 1.5, 1.0, 0.5, 0.0]


def test_warmup_longer_than_the_run():
    assert learning_rate(4, 2.0, 10, 5, "cosine") == pytest.approx(10 / 11)
