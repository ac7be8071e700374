"""When a run is said to look like over-optimisation, and when not."""

import pytest

from rlhf_ray.tracking.history import History
from rlhf_ray.tracking.over_optimisation import OverOptimisationWatch, signs_of_over_optimisation

HEALTHY = {"objective/kl": 4.0, "completions/mean_length": 30.0, "objective/scores": 0.5}


def history(*steps: dict[str, float]) -> History:
    found = History()
    for step, metrics in enumerate(steps, start=1):
        found.add(step, metrics)
    return found


def kinds(found: History, target: float | None = None) -> list[str]:
    return [kind for kind, _ in signs_of_over_optimisation(found, target)]


def test_a_run_as_it_should_be_has_no_sign() -> None:
    assert kinds(history(*[HEALTHY] * 20), 4.0) == []
    assert kinds(history(*[HEALTHY] * 20)) == []
    assert kinds(History()) == []


@pytest.mark.parametrize(
    ("kl", "target", "far"), [(8.1, 4.0, True), (7.9, 4.0, False), (15.1, None, True), (14.9, None, False)]
)
def test_kl_counts_against_its_target_or_else_by_token(kl: float, target: float | None, far: bool) -> None:
    newest = HEALTHY | {"objective/kl": kl}
    assert kinds(history(*[HEALTHY] * 9, *[newest] * 3), target) == ["KL"] * far
    assert kinds(history(*[HEALTHY] * 9, newest, *[HEALTHY] * 2), target) == [], "one step alone is an outlier"


def test_lengths_of_steps_count_where_nothing_is_evaluated() -> None:
    stubs = HEALTHY | {"completions/mean_length": 17.9, "objective/kl": 1.0}
    assert kinds(history(*[HEALTHY] * 3, *[stubs] * 3)) == ["length"]
    assert kinds(history(*[HEALTHY] * 3, *[stubs] * 2)) == [], "too few steps to tell"
    assert kinds(history(*[HEALTHY] * 3, *[stubs] * 2, HEALTHY)) == []


def test_held_out_answers_count_before_those_of_steps() -> None:
    def evaluated(length: float, distinct: float) -> dict[str, float]:
        return {"eval_completions/mean_length": length, "eval_completions/distinct_2": distinct}

    steps = [HEALTHY] * 6
    assert kinds(history(evaluated(30, 0.5), *steps, evaluated(17, 0.4))) == ["length"]
    assert kinds(history(evaluated(30, 0.5), *steps, evaluated(19, 0.29))) == ["variety"]
    assert kinds(history(evaluated(30, 0.5), *steps, evaluated(17, 0.29), evaluated(29, 0.45))) == []


def test_it_speaks_once_of_each_kind_and_says_what_to_do() -> None:
    watch = OverOptimisationWatch(history(*[HEALTHY] * 6), kl_target=4.0)
    far = HEALTHY | {"objective/kl": 14.0, "objective/scores": 2.0}
    said = [watch.see(7 + number, far) for number in range(4)]
    assert [bool(one) for one in said] == [False, True, False, False]
    assert said[1] is not None
    for words in ("step 8", "KL 10.7 nats a response, target 4", "from 0.50 to 1.50", "algorithm.kl.coefficient"):
        assert words in said[1]
    shorter = far | {"completions/mean_length": 5.0}
    more = [watch.see(11 + number, shorter) for number in range(3)]
    assert [bool(one) for one in more] == [False, True, False]
    assert more[1] is not None
    assert "answers shrank from 30 to 13 tokens" in more[1]


def test_a_resumed_run_knows_what_was_before() -> None:
    watch = OverOptimisationWatch(history({"eval_completions/mean_length": 30.0}))
    assert watch.see(9, {"eval_completions/mean_length": 8.0}) is not None
