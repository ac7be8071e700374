"""What a page sends while it is left: a request of its own, for its connection ends before another message is out.

Browsers deliver such a request (`navigator.sendBeacon`) after the page is gone, when its session here may be gone too.
So what may come is noted beforehand, under the name of the sheet, which nobody else knows.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock

from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from rlhf_ray.config.errors import RlhfError
from rlhf_ray.feedback.app.work import Work

ADDRESS = "leaving"
"""Of the request, below that of the page."""

MOST_BYTES = 64 * 1024
"""Browsers send no more in such a request."""

MOST_SHEETS = 10_000
"""Sheets that are kept in mind; those that were shown longest ago are forgotten."""

Keep = Callable[[Work], object]


@dataclass
class _Shown:
    keep: Keep
    number: int = 0
    """Of the last state that came this way."""


class LeftSheets:
    """Sheets that lie on desks, by name. Safe to use from several threads."""

    def __init__(self) -> None:
        self._shown: OrderedDict[str, _Shown] = OrderedDict()
        self._lock = Lock()

    def expect(self, paper: str, keep: Keep) -> None:
        """Note that a sheet is shown, and how what is on it is stored."""
        with self._lock:
            known = self._shown.pop(paper, None)
            self._shown[paper] = _Shown(keep, known.number if known else 0)
            while len(self._shown) > MOST_SHEETS:
                self._shown.popitem(last=False)

    def is_older(self, work: Work) -> bool:
        """Tell whether a later state of the sheet has come this way already, while this one was under way."""
        with self._lock:
            return work.paper in self._shown and work.number <= self._shown[work.paper].number

    def take(self, work: Work) -> bool:
        """Store a state; False where no such sheet is known.

        Raises:
            RlhfError: it does not fit the sheet, or the store does not take it.
        """
        with self._lock:
            shown = self._shown.get(work.paper)
            if shown is None:
                return False
            shown.number = max(shown.number, work.number)
        shown.keep(work)
        return True


sheets = LeftSheets()
"""Those of this process."""


async def _receive(request: Request) -> Response:
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        if len(content) > MOST_BYTES:
            return Response(status_code=413)
    try:
        found = await run_in_threadpool(sheets.take, Work.model_validate_json(bytes(content)))
    except (ValidationError, RlhfError):
        # The page that sent it is gone; nobody can be told.
        return Response(status_code=400)
    return Response(status_code=204 if found else 404)


def leaving_route() -> Route:
    """Return the route of these requests."""
    return Route(f"/{ADDRESS}", _receive, methods=["POST"])
