"""A docstring of a function begins with a verb, so that it can be read without knowing what stands around it."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = sorted(f"rlhf_ray/{path.name}" for path in (ROOT / "rlhf_ray").iterdir() if (path / "__init__.py").is_file())
FOLDERS = ["rlhf_ray", *ROOMS, "examples", "benchmarks"]
VERBS = frozenset(
    """
    Abort Acquire Adapt Add Allow Answer Append Apply Ask Average Await Be Begin Bind Bound Bring Broadcast
    Build Call Change Check Choose Clean Clear Click Clip Close Collect Combine Commit Compare Complete Compute
    Configure Connect Continue Convert Correlate Count Create Cut Deal Decode Delete Describe Divide Do Draw
    Drop Encode End Enter Escape Estimate Explain Extract Fail Fetch Fill Find Finish Fit Flush Forget Fork Free
    Gather Generate Give Go Group Guard Guess Hand Hang Hash Hide Hold Host Identify Import Install Join Judge
    Keep Lay Learn Leave Lend Let List Listen Load Look Make Map Mark Mask Measure Meet Merge Move Name Note
    Offer Open Order Pack Pair Pass Place Play Press Print Put Queue Quote Raise Rank Read Receive Record Redact
    Refuse Register Remember Remove Render Repeat Replace Report Return Reverse Reward Run Sample Save Say Score
    Seat See Seed Send Serve Set Shape Shift Shorten Show Shuffle Sieve Solve Sort Split Spread Square Stack
    Standardise Start Stop Store Submit Suggest Sum Take Tell Throw Train Translate Turn Undo Wait Walk Watch
    Weigh Whiten Wrap Write Yield
    """.split()  # noqa: SIM905  # a list of as many lines says no more
)
"""Verbs that are in use, in the imperative. Another verb is added here; what is no verb is written anew."""
RIDDLE = re.compile(r"(What|Who|Whose|Which|Where|How|Of|By|Those|That|In|For|From|Likewise)\b")
"""A class and a property are things: they begin with a noun."""


def documented(folder: str) -> Iterator[tuple[str, ast.AST, str]]:
    """Yield place, node and docstring of all functions and classes of a folder; of the package without its rooms."""
    for file in sorted((ROOT / folder).glob("*.py" if folder == "rlhf_ray" else "**/*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                said = ast.get_docstring(node)
                if said:
                    yield f"{file}:{node.lineno}: {node.name}: {said.splitlines()[0]}", node, said


def is_thing(node: ast.AST) -> bool:
    """Tell whether a node is a class or a property."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return any("property" in ast.unparse(decorator) for decorator in node.decorator_list)
    return isinstance(node, ast.ClassDef)


@pytest.mark.parametrize("folder", FOLDERS)
def test_functions_say_what_they_do(folder: str) -> None:
    begin = re.compile(r"(\w*+)(?! of\b)")
    assert [
        place
        for place, node, said in documented(folder)
        if not is_thing(node) and ((found := begin.match(said)) is None or found[1] not in VERBS)
    ] == []


@pytest.mark.parametrize("folder", FOLDERS)
def test_classes_and_properties_say_what_they_are(folder: str) -> None:
    assert [place for place, node, said in documented(folder) if is_thing(node) and RIDDLE.match(said)] == []
