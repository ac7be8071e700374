"""`rlhf submit`: where to run a job, and what to send there."""

import re
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from rlhf_ray.config.base import Section
from rlhf_ray.config.documents import SHOWN_CHARACTERS
from rlhf_ray.config.numbers import Seconds
from rlhf_ray.config.paths import PathText


class SubmitConfig(Section):
    """Run a job on a Ray cluster and follow its log, or write the file with which a scheduler starts one."""

    job: list[str] = Field(min_length=1)
    """The job's own command line: its verb, which may be left out where the file tells, its config file, overrides."""

    address: str = "http://127.0.0.1:8265"
    """Address of the cluster's dashboard."""

    working_dir: PathText = "."
    """Folder that is sent along, without what .gitignore names; holds the config and what its relative paths name."""

    name: str | None = None
    """Submission id, which a cluster takes once, and name of the rendered job. None: chosen by Ray, or the verb."""

    wait: bool = True
    """Follow the log to the job's end, and end as it did. Otherwise return once the job is taken."""

    connect_seconds: Seconds = 60
    """How long to try to reach the cluster and to be taken by it."""

    render: Literal["kuberay", "slurm"] | None = None
    """Submit nothing; print a KubeRay RayJob, or a Slurm batch script, with the nodes that the config's groups need."""

    image: str = "rlhf_ray:latest"
    """Container image of the rendered KubeRay job."""

    @field_validator("address")
    @classmethod
    def _is_dashboard(cls, address: str) -> str:
        try:
            parts = urlsplit(address)
            known = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
        except ValueError:  # a port that is no number, or a bracket that is not closed
            known = False
        if not known:
            raise ValueError(f"is the dashboard's, such as http://10.0.0.1:8265, not {address[:SHOWN_CHARACTERS]!r}")
        return address

    @field_validator("name")
    @classmethod
    def _is_name(cls, name: str | None) -> str | None:
        if name is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}", name):
            raise ValueError(f"is made of up to 100 letters, digits, _, . and -, not {name[:SHOWN_CHARACTERS]!r}")
        return name
