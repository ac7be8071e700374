"""The command `rlhf`: one verb for each job. Nothing heavy is imported until a job starts."""

import importlib
import os
import shutil
import sys
import textwrap
from collections.abc import Sequence

from rlhf_ray import __version__
from rlhf_ray.config.base import Section
from rlhf_ray.config.commands import JOBS, TOOLS
from rlhf_ray.config.errors import BadInput, Interrupted, RlhfError, perhaps
from rlhf_ray.redaction.process import secrets_hidden, show_traceback
from rlhf_ray.redaction.texts import redact_text
from rlhf_ray.start import start_job

HOW_TO_OVERRIDE = """Every key of the file is also an option, and options win: --policy.learning_rate 1e-6.
N stands for a position in a list, NAME for a name of yours."""

WIDEST_HELP = 120
"""Longer lines are hard to read."""

EXIT_BROKEN_PIPE = 141
"""What shells report for a command whose output nobody reads any more."""

ALGORITHMS = {
    "ppo": ("grpo", "dr_grpo", "rloo", "opo", "reinforce_plus_plus", "reinforce_plus_plus_baseline", "remax"),
    "dpo": ("ipo", "kto", "bco", "orpo", "simpo", "cpo"),
}
"""What other systems have a command for, by the verb that does it here."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0 done, 1 failed, 2 bad input, 130 interrupted."""
    if argv is None:
        # An error of the code itself is printed when this function is left; its text may hold a secret too.
        sys.excepthook = show_traceback
    with secrets_hidden():
        return _main(list(sys.argv[1:] if argv is None else argv))


def _main(arguments: list[str]) -> int:
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
        for line in redact_text(str(error)).splitlines():
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
    """Guess what somebody meant by a verb that does not exist."""
    name = verb.lower().replace("-", "_")
    verbs = [*JOBS, *TOOLS]
    for job, key in (("ppo", "algorithm.advantages"), ("dpo", "loss.type")):
        if name in ALGORITHMS[job]:
            return f": it is `rlhf {job}` with {key}: {name}"
    return perhaps(name, verbs) or f"; verbs are {', '.join(verbs)}"


def run_job(verb: str, arguments: Sequence[str]) -> int:
    """Load the config of a job and run it."""
    from rlhf_ray.config.reading.verbs import import_schema, load_job

    if {"-h", "--help"}.intersection(arguments):
        schema = import_schema(JOBS[verb].schema)
        print(settings_help(f"rlhf {verb} CONFIG.yaml [--key value ...]\n\n{HOW_TO_OVERRIDE}", schema))
        return 0
    start_job(verb, load_job(verb, arguments))
    return 0


def settings_help(usage: str, schema: type[Section]) -> str:
    """Return all settings with their documentation, as wide as the terminal."""
    from rlhf_ray.config.reading.schema import REQUIRED, describe

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
    from rlhf_ray.config.reading.loading import load_arguments
    from rlhf_ray.config.reading.verbs import import_schema

    tool = TOOLS[verb]
    schema = import_schema(tool.schema)
    if {"-h", "--help"}.intersection(arguments):
        print(settings_help(f"rlhf {verb} {tool.usage}", schema))
        return 0
    if tool.positional and not arguments and schema.model_fields[tool.positional].is_required():
        raise BadInput(f"nothing is given: rlhf {verb} {tool.usage}; all settings: rlhf {verb} --help")
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
