"""What goes wrong on a cluster, sorted: resources, time, machines, and errors of the code that ran there."""

from rlhf_ray.config.errors import BadInput, RlhfError


class ClusterError(RlhfError):
    """Base of all errors of the cluster; the message says what to do."""


class ClusterUnreachable(ClusterError):
    """No Ray answers at the address, it refuses us, or none starts here."""


class ResourcesUnavailable(ClusterError):
    """The cluster lacks resources that the groups ask for; the message lists asked and available."""


class DoesNotFit(BadInput):
    """The config asks more of a group than the group has; raised before anything starts."""


class RoleError(ClusterError):
    """Base of what happens to a running role: names role, rank and phase."""

    def __init__(self, message: str, role: str, rank: int | None, phase: str) -> None:
        super().__init__(message)
        self.role = role
        self.rank = rank
        self.phase = phase

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (str(self), self.role, self.rank, self.phase)


class DeadlineExceeded(RoleError):
    """A remote call did not return in time."""

    @classmethod
    def after(cls, seconds: float, role: str, ranks: list[int], phase: str) -> "DeadlineExceeded":
        """Make the error of ranks that were silent for so long."""
        listed = ", ".join(map(str, ranks))
        noun = "rank" if len(ranks) == 1 else "ranks"
        message = f"{role} {noun} {listed} did not finish {phase} within {seconds:g} s (cluster.deadlines)"
        return cls(message, role, ranks[0], phase)


class RoleFailed(RoleError):
    """A rank failed. `RoleDied` and `RoleRaised` tell a machine from the code that ran on it."""


class RoleDied(RoleFailed):
    """The machine's fault: process killed, node lost, out of memory. Restarting may help."""


class RoleLost(RoleDied):
    """A rank died too often to be started again."""


class RoleRaised(RoleFailed):
    """The code's fault: an exception in the role, whose own message comes first. Restarting repeats it.

    `__cause__` is the original exception where it could be brought here, `trace` the traceback on the rank, which is
    shown too unless the error was written for the user.
    """

    trace: str = ""

    @property
    def expected(self) -> bool:
        """Whether the exception was one that its reader can act on."""
        return isinstance(self.__cause__, RlhfError)

    @property
    def exit_code(self) -> int:  # type: ignore[override]
        """Return the exit code of the original error: 2 for bad input."""
        return self.__cause__.exit_code if isinstance(self.__cause__, RlhfError) else RlhfError.exit_code

    def __str__(self) -> str:
        message = super().__str__()
        return message if self.expected or not self.trace else f"{message}\n{self.trace}"

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild_raised, (self.args[0], self.role, self.rank, self.phase, self.trace, self.__cause__)


def _rebuild_raised(
    message: str, role: str, rank: int | None, phase: str, trace: str, cause: BaseException | None
) -> RoleRaised:
    error = RoleRaised(message, role, rank, phase)
    error.trace = trace
    error.__cause__ = cause
    return error
