"""A docstring begins with a verb, so that it can be read without knowing what stands around it."""

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "rlhf_ray"
NO_VERB = re.compile(r"(What|Of|By|Those|That|In|For|From|How|Where|Whose|Likewise)\b")


@pytest.mark.parametrize("room", sorted(path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()))
def test_public_functions_say_what_they_do(room: str) -> None:
    riddles = []
    for file in sorted((PACKAGE / room).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
                said = ast.get_docstring(node) or ""
                if NO_VERB.match(said):
                    riddles.append(f"{file}:{node.lineno}: {node.name}: {said.splitlines()[0]}")
    assert riddles == []
