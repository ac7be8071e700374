"""Which engines serve: seats by number, and waiting for one while lost engines may still come back."""

import asyncio
from collections.abc import Sequence

from rlhf_ray.cluster.errors import RoleError, RoleLost
from rlhf_ray.rollout.errors import NoEngineLeft
from rlhf_ray.rollout.interfaces import EngineClient
from rlhf_ray.rollout.seats import Seat


class Seating:
    """The seats of a pool. Lives on the pool's event loop.

    `restorable`: whether somebody will try to bring lost engines back, so that waiting for them makes sense.
    """

    def __init__(
        self, engines: Sequence[EngineClient], *, queued: bool, deadline_seconds: float, restorable: bool
    ) -> None:
        self._queued = queued
        self._deadline = deadline_seconds
        self._restorable = restorable
        self._given_up: dict[int, RoleError] = {}
        self._changed = asyncio.Event()
        self.seats = [self._seat(engine, rank) for rank, engine in enumerate(engines)]

    @property
    def serving(self) -> list[Seat]:
        """Seats whose engines have not failed."""
        return [seat for seat in self.seats if seat.lost is None]

    @property
    def restorable(self) -> list[Seat]:
        """Lost seats that may get an engine again."""
        return [s for s in self.seats if self._restorable and s.lost is not None and s.rank not in self._given_up]

    async def least_loaded(self) -> Seat:
        """The serving seat with the fewest samples to return, the first of equals; waits for a restart if none serves.

        Raises NoEngineLeft.
        """
        while not self.serving:
            await self._change()
        return min(self.serving, key=lambda seat: (seat.load, seat.rank))

    async def at(self, rank: int) -> Seat:
        """Seat `rank`, waiting for its restart; another one when it does not come back. Raises NoEngineLeft."""
        while self.seats[rank] in self.restorable:
            await self._change()
        return self.seats[rank] if self.seats[rank].lost is None else await self.least_loaded()

    def settle(self, rank: int, engine: EngineClient | RoleError) -> None:
        """Seat a new engine, or give the place up for the reason given."""
        if isinstance(engine, RoleError):
            self._given_up[rank] = engine
            self.seats[rank].lose(RoleLost(f"rollout engine {rank} was given up", "rollout", rank, "restart"))
        else:
            self._given_up.pop(rank, None)
            self.seats[rank] = self._seat(engine, rank)
        self._changed.set()
        self._changed = asyncio.Event()

    def _seat(self, engine: EngineClient, rank: int) -> Seat:
        return Seat(engine, rank, queued=self._queued, deadline_seconds=self._deadline)

    def no_engine_left(self) -> NoEngineLeft:
        """The error of a pool whose engines are all lost, with why each is."""
        reasons = "; ".join(map(self._why_lost, self.seats))
        return NoEngineLeft(f"no rollout engine is left: {reasons}", "rollout", None, "generate")

    def _why_lost(self, seat: Seat) -> str:
        restart = self._given_up.get(seat.rank)
        return _in_short(seat.lost) if restart is None else f"{_in_short(seat.lost)}; its restart: {_in_short(restart)}"

    async def _change(self) -> None:
        if not self.serving and not self.restorable:
            raise self.no_engine_left()
        await self._changed.wait()


def _in_short(error: Exception | None) -> str:
    """What an error says, without the traceback of a rank."""
    return str(error.args[0] if isinstance(error, RoleError) else error)
