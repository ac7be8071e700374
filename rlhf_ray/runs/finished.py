"""A run that came to its end: the same command says so, starts nothing and writes nothing."""

from collections.abc import Collection, Sequence
from pathlib import Path

from rlhf_ray.checkpoint.checkpoints import Checkpoints
from rlhf_ray.config.run import RunConfig
from rlhf_ray.runs.folder import RunFolder
from rlhf_ray.tracking.run_record import RunRecord
from rlhf_ray.tracking.terminal import Terminal


def finished_before(
    config: RunConfig,
    steps: int | None = None,
    *,
    exports: Sequence[Path] = (),
    deciding: Collection[str] = (),
) -> bool:
    """Tell, and say to the person who watches, whether an earlier start made all steps and wrote the model.

    Args:
        config: of this start.
        steps: of the run; None: as many as the earlier start counted from its data.
        exports: what it writes at its end beside `final`.
        deciding: settings that decide how many steps there are, where `steps` does not say it.

    Raises:
        BadInput: the folder holds a run with other settings.
    """
    folder = RunFolder.of(config)
    record = RunRecord.read(folder.path)
    # "finished" is written last: a start that was killed before the model was whole left "running".
    if record is None or record.status != "finished":
        return False
    made = Checkpoints(str(folder.checkpoints), config.checkpoint.keep).steps()
    if made[-1:] != [record.total_steps if steps is None else steps]:
        return False
    if not all(export.is_dir() for export in (folder.final, *exports)):
        return False
    changed = folder.changes(config)
    if any(change.name in deciding for change in changed):
        return False
    terminal = Terminal(None, bars=False)
    terminal.message(f"finished before: all {made[-1]} steps are made, and the model is in {folder.final}")
    for change in changed:
        terminal.message(f"of no effect, as no step is left: {change}")
    return True
