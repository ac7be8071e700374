"""Episodes that ask the engine together."""

import asyncio


class Lockstep:
    """Holds each episode of a group until all that still run want their next turn.

    Then the requests of the group leave in one call, so that the pace of their environments cannot matter
    (deterministic mode).
    """

    def __init__(self, episodes: int) -> None:
        self._running = episodes
        self._waiting = 0
        self._opens: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def meet(self) -> int:
        """Wait for the others; return how many go on together."""
        self._waiting += 1
        opened = self._opens
        self._open_if_all_wait()
        # Shielded: whoever is cancelled leaves the others waiting.
        return await asyncio.shield(opened)

    def leave(self) -> None:
        """Take no further turn."""
        self._running -= 1
        self._open_if_all_wait()

    def _open_if_all_wait(self) -> None:
        if self._waiting and self._waiting == self._running:
            self._opens.set_result(self._waiting)
            self._waiting, self._opens = 0, asyncio.get_running_loop().create_future()
