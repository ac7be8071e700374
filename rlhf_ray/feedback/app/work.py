"""What a browser sends about a sheet."""

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from rlhf_ray.config.errors import BadInput
from rlhf_ray.feedback.labelling.ranking import Draft, check_draft


class Work(BaseModel):
    """A whole state of a sheet, as the browser sends it at each change; lists follow the order on the page."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    paper: str
    """Which sheet it is about."""
    number: int
    """Grows with each state."""
    act: str | None
    """What was done besides writing on the sheet: the `act` of an action, or None."""
    ranks: list[int | None] = []
    overall: list[int | None] = []
    flags: list[list[str]] = []
    reason: str = ""
    ties: bool = False

    def draft(self, shown: Sequence[int]) -> Draft:
        """Return what was chosen, in the answers' own order.

        Raises:
            BadInput: it does not fit the answers, or holds what the page does not offer.
        """
        if not len(self.ranks) == len(self.overall) == len(self.flags) == len(shown):
            raise BadInput(f"the page sent {len(self.ranks)} ranks for {len(shown)} answers")
        places = [shown.index(place) for place in range(len(shown))]
        draft = Draft(
            tuple(self.ranks[place] for place in places),
            tuple(self.overall[place] for place in places),
            tuple(tuple(self.flags[place]) for place in places),
            self.reason,
        )
        check_draft(draft, len(shown))
        return draft
