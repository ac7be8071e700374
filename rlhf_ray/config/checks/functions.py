"""What the file of a Python function tells without running."""

import ast
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from rlhf_ray.config.errors import BadInput

NODES = {"function": (ast.FunctionDef, ast.AsyncFunctionDef), "class": (ast.ClassDef,)}
"""What defines each."""


def check_function(function: str, kind: Literal["function", "class"] = "function") -> None:
    """Check that `file.py:name` is Python, that what it imports first is installed, and that it defines the name.

    The file itself runs in a process of its own, once the job's roles start: it may load models, and may hang.

    Raises:
        BadInput: with the file, the line where there is one, and what to do.
    """
    path, _, name = function.rpartition(":")
    file = Path(path).expanduser()
    try:
        tree = ast.parse(file.read_bytes(), str(file))
    except OSError as error:
        raise BadInput(f"{function}: cannot read {file}: {error.strerror}") from None
    except (SyntaxError, ValueError) as error:
        line = f":{error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        raise BadInput(f"{file}{line}: {type(error).__name__}: {getattr(error, 'msg', None) or error}") from None
    for node in tree.body:
        for module in _modules(node):
            if not _is_there(module, file.resolve().parent):
                raise BadInput(f"{file}:{node.lineno}: imports {module}, which is not installed here")
    names = set(_names(tree))
    if not names & {name, "*", "__getattr__"}:
        defined = sorted(n.name for n in tree.body if isinstance(n, NODES[kind]))
        raise BadInput(f"{file} has no {kind} {name}; it defines: {', '.join(defined) or 'none'}")


def _modules(node: ast.stmt) -> Iterator[str]:
    """Yield the packages that a statement at the top of a file imports; those within `try` or `if` may be missing."""
    if isinstance(node, ast.Import):
        yield from (alias.name.partition(".")[0] for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
        yield node.module.partition(".")[0]


def _is_there(module: str, folder: Path) -> bool:
    # The function's process finds the file's neighbours first.
    if (folder / module).is_dir() or (folder / f"{module}.py").is_file():
        return True
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        # `__main__` and modules that were put in place by hand have no specification.
        return True


def _names(tree: ast.Module) -> Iterator[str]:
    """Yield every name that the file binds, wherever; `*` where another module may bind more."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from ((alias.asname or alias.name).partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
            # globals()["name"] = ...
            yield node.value
