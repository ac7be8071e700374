import pickle

import pytest

from rlhf_ray.cluster.errors import DeadlineExceeded, RoleDied, RoleError, RoleRaised
from rlhf_ray.cluster.mesh import Mesh
from rlhf_ray.cluster.outcome import last_error, plain
from rlhf_ray.config.errors import BadInput


@pytest.mark.parametrize("kind", [RoleDied, DeadlineExceeded, RoleRaised])
def test_errors_cross_processes(kind: type[RoleError]):
    error = pickle.loads(pickle.dumps(kind("lost", "policy", 3, "train")))
    assert type(error) is kind
    assert (str(error), error.role, error.rank, error.phase, error.exit_code) == ("lost", "policy", 3, "train", 1)


def test_an_error_of_the_code_takes_trace_and_cause_along():
    error = RoleRaised("no file (policy rank 0, start)", "policy", 0, "start")
    error.trace = "Traceback"
    error.__cause__ = BadInput("no file")
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.trace, str(copy.__cause__), copy.exit_code) == ("Traceback", "no file", 2)
    assert str(copy) == "no file (policy rank 0, start)", "what is meant for the user needs no traceback"
    copy.__cause__ = ValueError("bug")
    assert str(copy) == "no file (policy rank 0, start)\nTraceback"
    assert copy.exit_code == 1


def test_all_silent_ranks_are_named():
    error = DeadlineExceeded.after(1.5, "critic", [0, 2], "train")
    assert str(error) == "critic ranks 0, 2 did not finish train within 1.5 s (cluster.deadlines)"
    assert error.rank == 0


def test_the_exception_at_the_end_of_a_traceback():
    trace = "\x1b[36mray::A.f()\x1b[39m\n  File x\n    raise\nKeyError: 'a\nb'\n"
    assert plain(trace).startswith("ray::A.f()")
    assert last_error(trace) == "KeyError: 'a\nb'"
    assert last_error("no traceback") == "no traceback"


def test_mesh_slices_by_data_rank():
    mesh = Mesh(data=3, tensor=2)
    spread = mesh.spread(["a", "b", "c"])
    assert spread == ["a", "a", "b", "b", "c", "c"]
    assert mesh.collect(spread) == ["a", "b", "c"]
