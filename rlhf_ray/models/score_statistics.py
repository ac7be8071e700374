"""How a reward model's scores lie on its training texts, kept beside it: they have no zero and no unit of their own."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from rlhf_ray.config.errors import BadInput

STATISTICS_FILE = "score_statistics.json"


@dataclass(frozen=True, slots=True)
class ScoreStatistics:
    """Of the scores of some training texts."""

    texts: int
    mean: float
    std: float
    median: float

    @classmethod
    def of(cls, scores: Float[np.ndarray, " texts"]) -> "ScoreStatistics":
        """Describe scores."""
        scores = np.asarray(scores, np.float64)
        return cls(len(scores), float(scores.mean()), float(scores.std()), float(np.median(scores)))

    def write(self, directory: Path) -> None:
        """Write the file into a model's directory."""
        (directory / STATISTICS_FILE).write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, directory: str) -> "ScoreStatistics":
        """Read the file of a model's directory.

        Raises:
            BadInput: it is not there, or is none.
        """
        path = Path(directory).expanduser() / STATISTICS_FILE
        try:
            found = cls(**json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError as error:
            raise BadInput(
                f"{directory}: a member of an ensemble needs {STATISTICS_FILE}, which `rlhf reward` writes "
                "beside a model"
            ) from error
        except (OSError, TypeError, ValueError) as error:
            raise BadInput(f"{path}: is no file of score statistics ({error}); train the model again") from error
        if not found.std > 0:
            raise BadInput(f"{path}: the model gives all texts the same score (std {found.std}); it cannot be a member")
        return found
