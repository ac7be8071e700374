"""The command `rlhf`: one verb for each job. Nothing heavy is imported until a job starts."""

import importlib
import os
import shutil
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from rlhf_ray import __version__
from rlhf_ray.config.base import Section
from rlhf_ray.config.errors import BadInput, Interrupted, RlhfError
from rlhf_ray.config.nearest import perhaps


@dataclass(frozen=True)
class Job:
    """A verb that is told by a config file; its schema is in config/verbs.py."""

    module: str
    """Module whose `run(config)` does the work."""
    help: str


@dataclass(frozen=True)
class Tool:
    """A verb that is told by its arguments alone."""

    module: str
    """Module whose `run(config)` does the work."""
    schema: str
    """`module:class` of its settings."""
    help: str
    usage: str
    positional: str | None = None
    """Setting that takes the arguments without a name."""
    rest: bool = False
    """Whether options that are not its own follow a job's config file and go to `positional` too."""


JOBS = {
    "sft": Job("rlhf_ray.jobs.sft", "fine-tune a language model on texts"),
    "reward": Job("rlhf_ray.jobs.reward", "train a reward model on rankings"),
    "dpo": Job("rlhf_ray.jobs.dpo", "train a policy on preferences, without engines or a reward model"),
    "ppo": Job("rlhf_ray.jobs.ppo", "train a policy against reward sources"),
    "generate": Job("rlhf_ray.jobs.generate", "answer prompts with a model"),
    "score": Job("rlhf_ray.jobs.score", "score answers with reward sources"),
    "feedback": Job("rlhf_ray.jobs.feedback", "score answers at the terminal; the policy learns from each"),
    "evaluate": Job("rlhf_ray.jobs.evaluate", "compare models on held-out prompts, on one page"),
    "iterate": Job("rlhf_ray.pipelines.iterate", "rounds of collecting, labelling, reward model, PPO and evaluation"),
    "data": Job("rlhf_ray.jobs.data", "acquire, clean, classify, sample and split rows"),
    "label": Job("rlhf_ray.jobs.label", "rank answers in a browser, several annotators at once"),
    "compare": Job("rlhf_ray.jobs.compare", "choose blindly between two checkpoints in a browser"),
}
TOOLS = {
    "plan": Tool(
        "rlhf_ray.jobs.plan",
        "rlhf_ray.config.plan:PlanConfig",
        "show placement, memory and batches of a config; starts nothing",
        "[--gpu_gib 80] [VERB] CONFIG.yaml [--key value ...]",
        positional="job",
        rest=True,
    ),
    "doctor": Tool(
        "rlhf_ray.jobs.doctor",
        "rlhf_ray.config.doctor:DoctorConfig",
        "check this machine's installation",
        "[--setup cpu|gpu]",
    ),
    "submit": Tool(
        "rlhf_ray.jobs.submit",
        "rlhf_ray.config.submit:SubmitConfig",
        "run a job on a Ray cluster and follow its log",
        "[--address URL] VERB CONFIG.yaml [--key value ...]",
        positional="job",
        rest=True,
    ),
    "convert": Tool(
        "rlhf_ray.jobs.convert",
        "rlhf_ray.config.convert:ConvertConfig",
        "write data sets of other layouts as rows of this project's",
        "DATA ... --output FILE [--layout hh]",
        positional="data",
    ),
    "merge": Tool(
        "rlhf_ray.jobs.merge",
        "rlhf_ray.config.merge:MergeConfig",
        "add an adapter to its model's weights, for verbs that take whole models",
        "ADAPTER --output DIRECTORY [--base MODEL]",
        positional="adapter",
    ),
    "plot": Tool(
        "rlhf_ray.jobs.plot",
        "rlhf_ray.config.plot:PlotConfig",
        "draw the curves of runs again",
        "RUN ... [--output FOLDER]",
        positional="runs",
    ),
}

HOW_TO_OVERRIDE = """Every key of the file is also an option, and options win: --policy.learning_rate 1e-6.
N stands for a position in a list, NAME for a name of yours."""

WIDEST_HELP = 120
"""Longer lines are hard to read."""

EXIT_BROKEN_PIPE = 141
"""What shells report for a command whose output nobody reads any more."""

ALGORITHMS = {
    "ppo": ("grpo", "dr_grpo", "rloo", "reinforce_plus_plus", "reinforce_plus_plus_baseline", "remax"),
    "dpo": ("ipo", "kto", "bco", "orpo", "simpo", "cpo"),
}
"""What other systems have a command for, by the verb that does it here."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0 done, 1 failed, 2 bad input, 130 interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in {"-h", "--help", "help"}:
        print(_overview())
        return 0
    if arguments[0] == "--version":
        print(f"rlhf_ray {__version__}")
        return 0
    verb, *rest = arguments
    try:
        if verb in JOBS:
            return run_job(verb, rest)
        if verb in TOOLS:
            return run_tool(verb, rest)
        raise BadInput(f"unknown verb {verb!r}{_right_verb(verb)}")
    except RlhfError as error:
        for line in str(error).splitlines():
            print(f"rlhf: {line}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("rlhf: interrupted", file=sys.stderr)
        return Interrupted.exit_code
    except BrokenPipeError:
        # Whoever read the output, such as `head`, has enough; nor may the interpreter write what is left as it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE


def _right_verb(verb: str) -> str:
    """What somebody meant by a verb that does not exist."""
    name = verb.lower().replace("-", "_")
    verbs = [*JOBS, *TOOLS]
    for job, key in (("ppo", "algorithm.advantages"), ("dpo", "loss.type")):
        if name in ALGORITHMS[job]:
            return f": it is `rlhf {job}` with {key}: {name}"
    return perhaps(verb, verbs) or f"; verbs are {', '.join(verbs)}"


def run_job(verb: str, arguments: Sequence[str]) -> int:
    """Load the config of a job and run it."""
    from rlhf_ray.config.verbs import SCHEMAS, import_schema, load_job

    if not arguments or {"-h", "--help"}.intersection(arguments):
        schema = import_schema(SCHEMAS[verb])
        print(settings_help(f"rlhf {verb} CONFIG.yaml [--key value ...]\n\n{HOW_TO_OVERRIDE}", schema))
        return 0 if arguments else BadInput.exit_code
    config = load_job(verb, arguments)
    # Roles that do not fit their groups are found here, before Ray starts.
    importlib.import_module("rlhf_ray.jobs.plan").checked_parts(config)
    importlib.import_module(JOBS[verb].module).run(config)
    return 0


def settings_help(usage: str, schema: type[Section]) -> str:
    """All settings with their documentation, as wide as the terminal."""
    from rlhf_ray.config.schema import REQUIRED, describe

    width = min(shutil.get_terminal_size().columns, WIDEST_HELP)
    parts = [f"usage: {usage}\n", " ".join((schema.__doc__ or "").split()), ""]
    for field in describe(schema):
        default = f", {REQUIRED}" if field.default == REQUIRED else f" = {field.default}" if field.default else ""
        parts.append(f"--{field.path}  ({field.type}{default})")
        indent = " " * 6
        parts.append(
            textwrap.fill(field.doc, width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)
        )
    return "\n".join(parts)


def run_tool(verb: str, arguments: Sequence[str]) -> int:
    """Read the arguments of a tool and run it."""
    from rlhf_ray.config.loading import load_arguments
    from rlhf_ray.config.verbs import import_schema

    tool = TOOLS[verb]
    schema = import_schema(tool.schema)
    if {"-h", "--help"}.intersection(arguments):
        print(settings_help(f"rlhf {verb} {tool.usage}", schema))
        return 0
    config = load_arguments(schema, list(arguments), positional=tool.positional, rest=tool.rest)
    return int(importlib.import_module(tool.module).run(config) or 0)


def _overview() -> str:
    lines = [
        "usage: rlhf VERB ...\n",
        "Reinforcement learning from human feedback on Ray, vLLM and DeepSpeed.\n",
        "jobs:  rlhf VERB CONFIG.yaml [--key value ...]",
    ]
    lines += [f"  {verb:<10} {job.help}" for verb, job in JOBS.items()]
    lines += ["\ntools:"]
    lines += [f"  {verb:<10} {tool.help}" for verb, tool in TOOLS.items()]
    lines += ["\n`rlhf VERB --help` explains a verb and all its settings."]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
