"""Settings of the tools, from `rlhf submit` to `rlhf completion`."""

import re
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, field_validator, model_validator

from rlhf_ray.config.base import Section
from rlhf_ray.config.data import RowLayout
from rlhf_ray.config.environment import Variables
from rlhf_ray.config.model import Dtype
from rlhf_ray.config.numbers import Seconds, Share
from rlhf_ray.config.paths import OnePath, PathText, only
from rlhf_ray.config.reading.documents import SHOWN_CHARACTERS
from rlhf_ray.redaction.texts import quoted_address


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

    stop_seconds: Seconds = 600
    """How long the job may take to save once `ray job stop` asks it to leave; then it is killed. Ray's own is 3."""

    render: Literal["kuberay", "slurm"] | None = None
    """Submit nothing; print a KubeRay RayJob, or a Slurm batch script, with the nodes that the config's groups need."""

    image: str = "rlhf_ray:latest"
    """Container image of the rendered KubeRay job."""

    mounts: dict[PathText, str] = Field(default_factory=lambda: {"/storage": "rlhf-storage"}, min_length=1)
    """Claims on storage that the pods of a rendered KubeRay job mount, by the folder where they see it."""

    host_network: bool = False
    """Let the pods of a rendered KubeRay job use the network of their nodes, which NCCL over RDMA mostly needs."""

    rdma: Annotated[str, Field(pattern=r"[a-z0-9.-]+/[A-Za-z0-9._-]+")] | None = None
    """Resource of RDMA devices, such as rdma/hca_shared_devices_a: each GPU pod of a rendered KubeRay job gets one."""

    pod_environment: Variables = Field(default_factory=dict)
    """Environment variables of the pods of a rendered KubeRay job, Ray's own processes among them."""

    @field_validator("address")
    @classmethod
    def _is_dashboard(cls, address: str) -> str:
        try:
            parts = urlsplit(address)
            known = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
        except ValueError:  # a port that is no number, or a bracket that is not closed
            known = False
        if not known:
            shown = quoted_address(address, SHOWN_CHARACTERS)
            raise ValueError(f"is the dashboard's, such as http://10.0.0.1:8265, not {shown}")
        return address

    @field_validator("name")
    @classmethod
    def _is_name(cls, name: str | None) -> str | None:
        if name is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}", name):
            raise ValueError(f"is made of up to 100 letters, digits, _, . and -, not {name[:SHOWN_CHARACTERS]!r}")
        return name


class ConvertConfig(Section):
    """Read data sets in any layout that is known and write their rows in this project's columns, which are TRL's."""

    data: list[PathText] = Field(min_length=1)
    """Files, globs, directories or hub names."""

    output: PathText
    """File to write: .jsonl, .parquet, or .tsv for rank lists, which hold no prompts of their own and no ties."""

    layout: RowLayout = "auto"
    """How rows are written; auto knows it by each row's columns."""

    split: str = "train"
    """Split of a hub data set."""

    bad_rows: Share = 0.01
    """Share of rows that may be unusable; they are counted and shown. Past it nothing is written."""


class DoctorConfig(Section):
    """Check this machine's installation, and a cluster's nodes, in plain words with what to do."""

    setup: Literal["cpu", "gpu"] | None = None
    """Check only what set-up promises for this kind of machine: Python, and the build of torch."""

    address: Annotated[str, Field(min_length=1)] | None = None
    """Address of a running Ray cluster, such as 10.0.0.1:6379: all its nodes are checked too, each with all others."""

    output: PathText | None = None
    """With `address`: a folder that all nodes must see under this path, as they must that of a run."""

    @model_validator(mode="after")
    def _output_is_of_a_cluster(self) -> Self:
        if self.output is not None and self.address is None:
            raise ValueError("output is checked from a cluster's nodes; give its address too: --address HEAD:6379")
        return self


class MergeConfig(Section):
    """Add an adapter to its model's weights and write them as a model directory."""

    adapter: OnePath
    """Directory of the adapter, such as `final` of a run with lora."""

    output: PathText
    """Directory to write."""

    base: PathText | None = None
    """Model directory or hub name. None: the one that the adapter names."""

    dtype: Dtype | None = None
    """Type of the written weights. None: that of the model's files."""

    trust_remote_code: bool = False
    """Run Python code that comes with the model."""


class PlanConfig(Section):
    """Show placement, memory of each device and the batch arithmetic of a config; starts nothing."""

    job: list[str] = Field(min_length=1)
    """The job's own command line: its verb, which may be left out where the file tells, its config file, overrides."""

    gpu_gib: float = Field(default=80, ge=0.001, le=1_000_000)
    """Memory of each GPU, in GiB."""

    host_gib: Annotated[float, Field(ge=0.001, le=1_000_000)] | None = None
    """Memory of each machine, in GiB. None: 931, a terabyte, where there are GPUs; for one machine without, what this
    one has; for several without, it is not looked at."""

    gpu_tflops: float = Field(default=989, ge=0.001, le=1_000_000)
    """Peak of each GPU in bfloat16 without sparsity, in teraflops; by default that of an H100, as the next two are."""

    gpu_bandwidth: float = Field(default=3350, ge=0.001, le=1_000_000)
    """Memory bandwidth of each GPU, in GB/s."""

    host_bandwidth: float = Field(default=50, ge=0.001, le=1_000_000)
    """Between a GPU and the machine's memory, in GB/s; by which roles sleep and wake."""

    link_bandwidth: float = Field(default=50, ge=0.001, le=1_000_000)
    """Of each GPU to GPUs of other machines, in GB/s; by which weights travel to engines elsewhere."""


class PlotConfig(Section):
    """Redraw the curves and the report of a run folder; several folders are laid over one another."""

    runs: list[PathText] = Field(min_length=1)
    """Run folders, or other folders with a metrics.jsonl."""

    output: PathText | None = None
    """Folder to draw into. None: the run's own; for several runs, `comparison` beside the first."""


class RunsConfig(Section):
    """List runs: what each does, how far it is and what it has reached, those that still go on first."""

    folders: list[PathText] = Field(default_factory=lambda: ["outputs"], min_length=1)
    """Run folders, or folders that have some in them."""

    metrics: list[str] = Field(default_factory=list)
    """Metrics to show the newest values of. None given: what tells most of each run."""


class InitConfig(Section):
    """Write a small project that runs on two CPU cores: configs, data, a reward function and an untrained model."""

    folder: OnePath
    """Folder to make."""

    examples: bool = False
    """Write the examples and presets of the documentation instead: `examples/` and `configs/`, whose commands run there
    as they do in the repository."""


class SchemaConfig(Section):
    """Write the JSON Schema of each job's config, by which an editor completes, explains and checks config files."""

    folder: OnePath
    """Folder to write into; a config names its own by the line `# yaml-language-server: $schema=FOLDER/VERB.json`."""


class CompletionConfig(Section):
    """Print what completes verbs, options and values at a shell's prompt, to be read by the shell as it starts."""

    shell: Annotated[Literal["bash", "zsh", "fish"], BeforeValidator(only)]
    """Which shell."""
