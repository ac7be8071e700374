"""How a reward model's scores lie on its training texts, kept beside it: they have no zero and no unit of their own."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from rlhf_ray.config.errors import BadInput
from rlhf_ray.config.rewards import ModelReward

STATISTICS_FILE = "score_statistics.json"


@dataclass(frozen=True, slots=True)
class ScoreStatistics:
    """Statistics of the scores of some training texts."""

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
            BadInput: it is not there, or is none, or says that all scores are equal.
        """
        path = _path(directory)
        try:
            found = cls(**json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError as error:
            raise BadInput(
                f"{directory}: has no {STATISTICS_FILE}, which `rlhf reward` writes beside a model and which an "
                "ensemble and `normalise: true` need"
            ) from error
        except (OSError, TypeError, ValueError) as error:
            raise BadInput(f"{path}: is no file of score statistics ({error}); train the model again") from error
        if not (found.std > 0 and np.isfinite([found.std, found.mean]).all()):
            raise BadInput(f"{path}: the model gives all texts the same score (std {found.std}); it has nothing to say")
        return found

    @classmethod
    def read_if_kept(cls, directory: str) -> "ScoreStatistics | None":
        """Read the file of a model's directory; None where there is none.

        Raises:
            BadInput: what is there is none, or says that all scores are equal.
        """
        return cls.read(directory) if _path(directory).is_file() else None


def statistics_of(source: ModelReward) -> list[ScoreStatistics]:
    """Return how the scores of each member lie on its training texts; empty where scores stay as the models give them.

    Raises:
        BadInput: statistics that the source needs are missing, or a file is broken.
    """
    if source.ensemble:
        return [ScoreStatistics.read(path) for path in (source.path, *source.ensemble)]
    if source.normalise:
        return [ScoreStatistics.read(source.path)]
    if source.normalise is None and source.measures == "reward":
        return list(filter(None, [ScoreStatistics.read_if_kept(source.path)]))
    return []


def units_of(source: ModelReward) -> str:
    """Return a line for the person who watches: in which units the source scores."""
    found = statistics_of(source)
    if not found:
        return f"{source.name}: scores as the model gives them"
    if source.ensemble:
        return f"{source.name}: mean of {len(found)} models' scores, each in units of its deviation over training texts"
    [only] = found
    return (
        f"{source.name}: scores in units of {only.std:.3g}, their deviation over {only.texts:,} training texts, "
        f"from their mean {only.mean:.3g}"
    )


def _path(directory: str) -> Path:
    return Path(directory).expanduser() / STATISTICS_FILE
