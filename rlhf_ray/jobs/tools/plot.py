"""`rlhf plot`: draw the curves and the report of run folders again."""

from pathlib import Path

from rlhf_ray.config.errors import BadInput, RlhfError
from rlhf_ray.config.jobs.tools import PlotConfig
from rlhf_ray.tracking.history import History
from rlhf_ray.tracking.pictures import CURVES_FILE, REPORT_FILE
from rlhf_ray.tracking.records import METRICS_FILE


def run(config: PlotConfig) -> None:
    """Draw one run into its folder, or several runs over one another into a folder of their own.

    Raises:
        BadInput: a folder holds no metrics.
        RlhfError: the output cannot be written.
    """
    histories = {folder: _history(folder) for folder in (Path(run).expanduser().resolve() for run in config.runs)}
    folder, *others = histories
    own = folder.parent / "comparison" if others else folder
    output = Path(config.output).expanduser() if config.output else own
    try:
        output.mkdir(parents=True, exist_ok=True)
        _draw(histories, output)
    except OSError as error:
        raise RlhfError(f"output: cannot write to {output}: {error.strerror or error}") from error
    print(f"{output / CURVES_FILE}\n{output / REPORT_FILE}")


def _history(folder: Path) -> History:
    if not (folder / METRICS_FILE).is_file():
        what = "is not a run folder: it has no" if folder.exists() else "does not exist, so it has no"
        raise BadInput(f"runs: {folder} {what} {METRICS_FILE}")
    history = History.read(folder)
    if not history.series:
        raise BadInput(f"runs: {folder / METRICS_FILE} has no metrics yet")
    return history


def _draw(histories: dict[Path, History], output: Path) -> None:
    # matplotlib and jinja are loaded only once it is known that there is something to draw.
    from rlhf_ray.tracking.curves import draw_curves
    from rlhf_ray.tracking.report import write_comparison, write_report

    names = _short_names(list(histories))
    named = dict(zip(names, histories.values(), strict=True))
    draw_curves(named, output / CURVES_FILE)
    if len(histories) == 1:
        (folder,) = histories
        write_report(folder, histories[folder], output / REPORT_FILE)
    else:
        write_comparison(named, output / REPORT_FILE)


def _short_names(folders: list[Path]) -> list[str]:
    """Return folder names, with as much of the path before them as it takes to tell them apart."""
    for parts in range(1, max(len(folder.parts) for folder in folders) + 1):
        names = ["/".join(folder.parts[-parts:]) for folder in folders]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]
