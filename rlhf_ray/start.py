"""How a job starts, whichever door it came in by: the command, or Python."""

import importlib

from rlhf_ray.config.base import Section
from rlhf_ray.config.commands import JOBS
from rlhf_ray.runs.stopping import sigterm_interrupts


def start_job(verb: str, config: Section) -> None:
    """Do the work of a job whose config was read and checked.

    Raises:
        RlhfError: with what is wrong and what to do.
    """
    # Roles that do not fit their groups are found here, before Ray starts.
    importlib.import_module("rlhf_ray.runs.layouts").checked_layouts(config)
    with sigterm_interrupts():
        importlib.import_module(JOBS[verb].module).run(config)
