from rlhf_ray.cluster.supervision import Health, RestartPolicy, Supervision


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_waits_twice_as_long_each_time_and_gives_up():
    clock = Clock()
    ranks = Supervision(2, RestartPolicy(restarts=3, first_delay=1, longest_delay=3), clock)
    waits = []
    for _ in range(3):
        assert ranks.failed(1) is Health.DOWN
        waits.append(ranks.wait(1))
        clock.now += 10
        assert ranks.wait(1) == 0
        ranks.restarted(1)
        assert ranks.health(1) is Health.HEALTHY
    assert waits == [1, 2, 3]
    assert ranks.failed(1) is Health.LOST
    assert ranks.health(0) is Health.HEALTHY


def test_old_failures_are_forgiven():
    clock = Clock()
    ranks = Supervision(1, RestartPolicy(restarts=1, window_seconds=60), clock)
    for _ in range(5):
        assert ranks.failed(0) is Health.DOWN
        ranks.restarted(0)
        ranks.works(0)
        clock.now += 61
    assert ranks.failures(0) == 0


def test_a_start_that_dies_late_each_time_is_not_tried_for_ever():
    """Three failures an hour, and the time of starting counts for nothing."""
    clock = Clock()
    ranks = Supervision(1, RestartPolicy(restarts=3, window_seconds=3600), clock)
    ranks.works(0)
    clock.now += 600
    for _ in range(3):
        assert ranks.failed(0) is Health.DOWN
        ranks.restarted(0)
        clock.now += 1500
    assert ranks.failed(0) is Health.LOST


def test_one_death_reported_twice_counts_once():
    ranks = Supervision(1, RestartPolicy(restarts=1), Clock())
    assert ranks.failed(0) is ranks.failed(0) is Health.DOWN
    assert ranks.failures(0) == 1


def test_no_restarts_by_default():
    assert Supervision(1, RestartPolicy(), Clock()).failed(0) is Health.LOST
