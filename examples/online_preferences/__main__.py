"""Learn a control task from choices between clips: `python -m examples.online_preferences`."""

import sys
from contextlib import ExitStack

from rich.console import Console

from examples.online_preferences.report import PICTURE_FILE, report_lines, write_report
from examples.online_preferences.run import finished, make_run, refuse_unusable
from examples.online_preferences.settings import Settings
from rlhf_ray.cli import settings_help
from rlhf_ray.cluster.session import ray_session
from rlhf_ray.config.errors import RlhfError
from rlhf_ray.config.reading.loading import load_arguments
from rlhf_ray.runs.stopping import stop_on_signals


def main(arguments: list[str]) -> int:
    """Make all runs that are asked for and not there yet, and report on all that are."""
    if {"-h", "--help"}.intersection(arguments):
        print(settings_help("python -m examples.online_preferences [--key value ...]", Settings))
        return 0
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False, markup=False)
    try:
        settings = load_arguments(Settings, arguments)
        runs = [settings.one(kind, seed) for seed in settings.seeds for kind in settings.rewards]
        left = [run for run in runs if not finished(run)]
        for run in left:
            refuse_unusable(run)
        if left:
            make_runs(settings, left, console)
        write_report(settings)
    except RlhfError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    for line in report_lines(settings):
        console.print(line, soft_wrap=True)
    console.print(f"picture: {settings.output}/{PICTURE_FILE}", soft_wrap=True)
    return 0


def make_runs(settings: Settings, runs: list[Settings], console: Console) -> None:
    """Make runs one after the other, in one session of Ray, until all are made or somebody asks to stop."""
    with ExitStack() as stack:
        stack.enter_context(ray_session(settings.cluster, settings.groups))
        # After Ray, which takes the handlers of signals for itself when it starts.
        stop = stack.enter_context(stop_on_signals())
        for run in runs:
            console.print(f"{run.task}, {run.rewards[0]} reward, seed {run.seed}: {run.output}", soft_wrap=True)
            if not make_run(run, stop):
                console.print("stopped; the same command goes on")
                return


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
