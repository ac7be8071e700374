"""Batches of rows through the cleaner: in this process, or in several by Ray Data. The results are the same."""

import itertools
import logging
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rlhf_ray.config.data import RowLayout
from rlhf_ray.config.errors import BadInput
from rlhf_ray.config.jobs.cleaning import DataJobConfig
from rlhf_ray.config.placement import GroupConfig
from rlhf_ray.data.cleaning.cleaner import Cleaned, Cleaner
from rlhf_ray.data.pieces import Piece, read_piece
from rlhf_ray.jobs.data.sources import OpenSource
from rlhf_ray.redaction.process import hide_secrets, secrets_hidden

BATCH_ROWS = 1000
"""Rows that are cleaned together; part of the result's definition where duplicates meet by the thousand."""

Batches = Callable[[OpenSource], Iterator[Cleaned]]


@contextmanager
def open_processes(config: DataJobConfig, cleaner: Cleaner, folder: Path) -> Iterator[Batches]:
    """Open what cleans a source, batch by batch, in the order of its rows.

    Args:
        config: of the job.
        cleaner: what is done to each batch.
        folder: of temporary files, which the other processes see too.
    """
    if config.processes == 1:
        yield lambda source: itertools.chain.from_iterable(
            clean_piece(cleaner, piece, source.layout) for piece in source.survey.pieces
        )
        return
    from rlhf_ray.cluster.session import ray_session

    with ray_session(config.cluster, {"data": GroupConfig(cpus_per_node=config.processes)}):
        from ray import cloudpickle

        # By a file, because a process that restarts finds it again, whatever became of the object store.
        shared = folder / "cleaner.pickle"
        shared.write_bytes(cloudpickle.dumps(cleaner))
        try:
            yield lambda source: _by_ray(str(shared.resolve()), source, config.processes)
        finally:
            shared.unlink(missing_ok=True)


def clean_piece(cleaner: Cleaner, piece: Piece, layout: RowLayout) -> Iterator[Cleaned]:
    """Clean the rows of a piece.

    Raises:
        BadInput: the file is broken as a whole.
    """
    rows = read_piece(piece)
    while batch := list(itertools.islice(rows, BATCH_ROWS)):
        yield cleaner.clean(batch, layout)


class PieceCleaner:
    """A process of Ray Data that cleans pieces."""

    def __init__(self, cleaner: str) -> None:
        """Load the cleaner from its file."""
        hide_secrets()
        with secrets_hidden():
            self._cleaner: Cleaner = pickle.loads(Path(cleaner).read_bytes())

    def __call__(self, rows: dict[str, Any]) -> Iterator[dict[str, list[bytes]]]:
        """Yield batches of cleaned rows; what is wrong with a file comes as a message."""
        for packed in rows["piece"]:
            piece, layout = pickle.loads(packed)
            try:
                for cleaned in clean_piece(self._cleaner, piece, layout):
                    yield {"result": [pickle.dumps(cleaned)]}
            except BadInput as error:
                yield {"result": [pickle.dumps(str(error))]}


def _by_ray(cleaner: str, source: OpenSource, processes: int) -> Iterator[Cleaned]:
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    pieces = [{"piece": pickle.dumps((piece, source.layout))} for piece in source.survey.pieces]
    if not pieces:
        return
    results = ray.data.from_items(pieces, override_num_blocks=len(pieces)).map_batches(
        PieceCleaner,
        fn_constructor_args=(cleaner,),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=min(processes, len(pieces))),
        num_cpus=1,
    )
    for row in results.iter_rows():
        result = pickle.loads(row["result"])
        if isinstance(result, str):
            raise BadInput(result)
        yield result
