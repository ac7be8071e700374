"""`make gpu-test`: everything that only a GPU can show, part by part.

    python -m benchmarks.gpu                # all parts that have not passed yet
    python -m benchmarks.gpu train decode   # these, again
    python -m benchmarks.gpu --dry-run      # without a GPU: does each call fit what is installed?

Each part runs in a process of its own, with a deadline. What it found lies in the folder of results, its output beside.
"""

import argparse
import importlib
import importlib.util
import sys
import tempfile
from pathlib import Path

from benchmarks.gpu.dry_run import Calls, check_calls
from benchmarks.gpu.machine import gpu_names
from benchmarks.gpu.outcome import FAILED, PASSED, Outcome, lacking, run
from benchmarks.gpu.parts import PARTS, Part

FOLDER = Path("outputs/gpu_test")


def main(arguments: list[str] | None = None) -> int:
    """Run parts; returns 1 where one failed, or nothing ran."""
    parser = argparse.ArgumentParser(prog="make gpu-test", description="Everything that only a GPU can show.")
    names = [part.name for part in PARTS]
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(names))
    parser.add_argument("--dry-run", action="store_true", help="check the arguments of each call; needs no GPU")
    parser.add_argument("--results", type=Path, default=FOLDER, help=f"folder of results (default {FOLDER})")
    options = parser.parse_args(arguments)
    if unknown := sorted(set(options.parts) - set(names)):
        parser.error(f"no such part: {', '.join(unknown)}; there are {', '.join(names)}")
    chosen = [part for part in PARTS if not options.parts or part.name in options.parts]
    if options.dry_run:
        return dry_run(chosen)
    return run_parts(chosen, options.results.resolve(), again=bool(options.parts))


def run_parts(parts: list[Part], folder: Path, again: bool) -> int:
    """Run what has not passed, or everything `again`, and say how each part ended."""
    devices = gpu_names()
    print(f"GPUs: {', '.join(devices) or 'none'}; results in {folder}")
    outcomes = []
    for part in parts:
        known = None if again else Outcome.read(folder, part)
        outcome = known if known is not None and known.status == PASSED else run(part, folder, len(devices))
        print(outcome.line() + (" (from an earlier run)" if outcome is known else ""), flush=True)
        outcomes.append(outcome)
    ended = [outcome.status for outcome in outcomes]
    print(", ".join(f"{ended.count(status)} {status}" for status in dict.fromkeys(ended)))
    return int(FAILED in ended or PASSED not in ended)


def dry_run(parts: list[Part]) -> int:
    """Check the calls of each part, and say what does not fit; returns 1 where something does not."""
    whole, seen = Calls(), dict[str, Calls]()
    for part in parts:
        if reason := lacking(part):
            print(f"{part.name:10} skipped: {reason}")
            continue
        calls = Calls()
        for name in part.modules:
            if name not in seen:
                seen[name] = checked(name)
            calls += seen[name]
        if part.rehearsal:
            calls += rehearsed(part)
        print(f"{part.name:10} {calls.checked} calls fit, {calls.unknown} cannot be told")
        whole += calls
    for problem in dict.fromkeys(whole.problems):
        print(problem)
    return int(bool(whole.problems) or not whole.checked)


def rehearsed(part: Part) -> Calls:
    """Call a part's rehearsal; what it raises does not fit."""
    module, _, function = part.rehearsal.partition(":")
    with tempfile.TemporaryDirectory() as folder:
        try:
            getattr(importlib.import_module(f"benchmarks.gpu.{module}"), function)(Path(folder))
        except Exception as error:  # whatever is wrong with a config or an argument
            return Calls(problems=[f"{part.name}: {type(error).__name__}: {error}"])
    return Calls()


def checked(name: str) -> Calls:
    """Check a module's calls; one that cannot be imported does not fit either."""
    try:
        return check_calls(importlib.import_module(name))
    except (ImportError, AttributeError) as error:
        return Calls(problems=[f"{name}: {error}"])


if __name__ == "__main__":
    sys.exit(main())
