"""What can be known of a part without a GPU: whether each call that it makes fits the function that is installed.

Source is read, not run. Calls of imported functions, of classes, and of methods of objects whose class is known (by a
call of the class, an annotation, or a function's return type) are bound to the signatures of what is installed.
"""

import ast
import importlib
import inspect
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, NamedTuple


class Known(NamedTuple):
    """Value of an expression as far as the source tells: the object itself, or the class that it is an instance of."""

    value: Any
    is_instance: bool = False


@dataclass
class Calls:
    """Calls of a module, or of several."""

    checked: int = 0
    unknown: int = 0
    """Of objects whose class the source does not tell, or without a signature."""
    problems: list[str] = field(default_factory=list)

    def __iadd__(self, other: "Calls") -> "Calls":
        self.checked += other.checked
        self.unknown += other.unknown
        self.problems += other.problems
        return self


def check_calls(module: ModuleType, source: str | None = None) -> Calls:
    """Check all calls of a module; `source` stands for its own where given."""
    tree = ast.parse(source if source is not None else inspect.getsource(module))
    names = {name: Known(value) for name, value in vars(module).items()} | dict(_imports(tree))
    reader = _Reader(module.__name__, names)
    reader.visit(tree)
    return reader.calls


def _imports(tree: ast.AST) -> Iterator[tuple[str, Known]]:
    """Yield what is imported anywhere, within functions and for annotations alone too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                found = importlib.import_module(name.name)
                yield (
                    (name.asname or name.name.partition(".")[0]),
                    Known(found if name.asname else importlib.import_module(name.name.partition(".")[0])),
                )
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            origin = importlib.import_module(node.module)
            for name in node.names:
                # It may be a module of that package.
                if not hasattr(origin, name.name):
                    importlib.import_module(f"{node.module}.{name.name}")
                yield name.asname or name.name, Known(getattr(origin, name.name))


class _Reader(ast.NodeVisitor):
    def __init__(self, module: str, names: dict[str, Known]) -> None:
        self.calls = Calls()
        self._module = module
        self._scopes = [names]
        self._attributes: list[dict[str, Known]] = []
        """Of `self`, in the classes around."""
        self._classes: list[Known | None] = []

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._attributes.append({})
        found = self._scopes[0].get(node.name)
        self._classes.append(Known(found.value, is_instance=True) if found and inspect.isclass(found.value) else None)
        # What methods say of `self` counts in those above them too.
        for statement in ast.walk(node):
            if isinstance(statement, ast.FunctionDef):
                self._note_method(statement)
        self.generic_visit(node)
        self._attributes.pop()
        self._classes.pop()

    def _note_method(self, node: ast.FunctionDef) -> None:
        if any(isinstance(one, ast.Name) and one.id == "property" for one in node.decorator_list):
            self._note(node.name, self._annotated(node.returns))
        given = {one.arg: self._annotated(one.annotation) for one in (*node.args.args, *node.args.kwonlyargs)}
        for statement in ast.walk(node):
            if isinstance(statement, ast.AnnAssign) and _own(statement.target):
                self._note(_own(statement.target), self._annotated(statement.annotation))
            elif isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Name):
                for target in statement.targets:
                    self._note(_own(target), given.get(statement.value.id))

    def _note(self, name: str, known: Known | None) -> None:
        if name and known is not None:
            self._attributes[-1].setdefault(name, known)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        arguments = (*node.args.args, *node.args.kwonlyargs)
        # A name of this function hides others, also where nothing is known of it.
        scope: dict[str, Known | None] = {one.arg: self._annotated(one.annotation) for one in arguments}
        if self._classes and arguments and arguments[0].arg == "self":
            scope["self"] = self._classes[-1]
        for statement in ast.walk(node):
            if isinstance(statement, ast.Name) and isinstance(statement.ctx, ast.Store):
                scope.setdefault(statement.id, None)
        self._scopes.append(scope)  # type: ignore[arg-type]
        self.generic_visit(node)
        self._scopes.pop()

    visit_AsyncFunctionDef = visit_FunctionDef  # noqa: N815  # the name that `ast` looks for

    def visit_Assign(self, node: ast.Assign) -> None:
        self.generic_visit(node)
        self._bind(node.targets, self._known(node.value))

    def visit_With(self, node: ast.With | ast.AsyncWith) -> None:
        for item in node.items:
            self.visit(item.context_expr)
            if item.optional_vars is not None:
                self._bind([item.optional_vars], self._known(item.context_expr))
        for statement in node.body:
            self.visit(statement)

    visit_AsyncWith = visit_With  # noqa: N815  # likewise

    def _bind(self, targets: list[ast.expr], known: Known | None) -> None:
        for target in targets:
            if isinstance(target, ast.Name):
                self._scopes[-1][target.id] = known  # type: ignore[assignment]

    def visit_Call(self, node: ast.Call) -> None:
        self.generic_visit(node)
        called = self._callable(node.func)
        if called is None:
            self.calls.unknown += 1
            return
        function, before = called
        try:
            signature = inspect.signature(function)
        except (TypeError, ValueError):
            self.calls.unknown += 1
            return
        given = [*([None] * before), *(one for one in node.args if not isinstance(one, ast.Starred))]
        named = {one.arg: None for one in node.keywords if one.arg is not None}
        spread = len(given) - before < len(node.args) or len(named) < len(node.keywords)
        self.calls.checked += 1
        try:
            (signature.bind_partial if spread else signature.bind)(*given, **named)
        except TypeError as error:
            called_as = ast.unparse(node.func)
            self.calls.problems.append(f"{self._module}:{node.lineno}: {called_as}(...): {error}")

    def _callable(self, node: ast.expr) -> tuple[Any, int] | None:
        """Return what is called, and how many arguments it gets before those that are written."""
        if isinstance(node, ast.Attribute):
            owner = self._known(node.value)
            if owner is not None and owner.is_instance:
                found = inspect.getattr_static(owner.value, node.attr, None)
                if isinstance(found, staticmethod):
                    return found.__func__, 0
                if isinstance(found, classmethod):
                    return found.__func__, 1
                return (found, 1) if inspect.isfunction(found) else None
        known = self._known(node)
        if known is None or known.is_instance or not callable(known.value):
            return None
        return known.value, 0

    def _known(self, node: ast.expr | None) -> Known | None:
        match node:
            case ast.Await():
                return self._known(node.value)
            case ast.Name():
                for scope in reversed(self._scopes):
                    if node.id in scope:
                        return scope[node.id]
            case ast.Attribute(value=ast.Name(id="self")) if self._attributes:
                return self._attributes[-1].get(node.attr)
            case ast.Attribute():
                return self._attribute(self._known(node.value), node.attr)
            case ast.Call():
                called = self._callable(node.func)
                return None if called is None else _returned(called[0])
        return None

    def _attribute(self, owner: Known | None, name: str) -> Known | None:
        if owner is None:
            return None
        if not owner.is_instance:
            found = getattr(owner.value, name, None)
            return None if found is None else Known(found)
        found = inspect.getattr_static(owner.value, name, None)
        return _returned(found.fget) if isinstance(found, property) else None

    def _annotated(self, node: ast.expr | None) -> Known | None:
        """Return an instance of the class that an annotation names, alone or beside None."""
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            node = ast.parse(node.value, mode="eval").body
        if isinstance(node, ast.BinOp):
            return self._annotated(node.left)
        known = self._known(node) if isinstance(node, ast.Name | ast.Attribute) else None
        return Known(known.value, is_instance=True) if known is not None and inspect.isclass(known.value) else None


def _own(target: ast.expr) -> str:
    """Return the name of an attribute of `self`; nothing for anything else."""
    if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == "self":
        return target.attr
    return ""


def _returned(function: Any) -> Known | None:
    """Return an instance of what a class makes or a function returns; of a context manager, what its block gets."""
    if inspect.isclass(function):
        return Known(function, is_instance=True)
    try:
        hint = typing.get_type_hints(function).get("return")
    except Exception:  # names that are imported for annotations alone, and whatever else libraries write there
        return None
    arguments = typing.get_args(hint)
    if arguments and "Iterator" in str(typing.get_origin(hint)) and hasattr(function, "__wrapped__"):
        hint = arguments[0]
    return Known(hint, is_instance=True) if inspect.isclass(hint) else None
