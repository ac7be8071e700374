"""YAML files read with the line of every key, so that an error can point at it."""

import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from rlhf_ray.config.errors import BadInput, nearest
from rlhf_ray.config.paths import path_problem

KeyPath = tuple[str | int, ...]

SHOWN_CHARACTERS = 60
"""A wrong value is quoted up to this length."""


@dataclass(frozen=True)
class Document:
    """The content of a YAML file and where each key stands in it; or settings that no file holds."""

    path: Path | None
    """None: they were given as a mapping."""
    data: dict[str, Any]
    lines: dict[KeyPath, int] = field(default_factory=dict)
    """Line (from 1) of each key path."""

    def where(self, key: KeyPath) -> str:
        """Return file and line of a key, or of the nearest section around it; empty where there is no file."""
        if self.path is None:
            return ""
        for length in range(len(key), 0, -1):
            if key[:length] in self.lines:
                return f"{self.path}:{self.lines[key[:length]]}"
        return str(self.path)


LARGEST_FILE = 2**18
"""Bytes of a config file; a long chat template has some 20,000."""
MOST_VALUES, DEEPEST, MOST_DIGITS = 10_000, 64, 400
"""Values of a config, those of an alias counted wherever it stands; sections within one another; digits of a number."""


class _Loader(yaml.SafeLoader):
    """Safe YAML with the scalars of YAML 1.2, of bounded size.

    `1e-6` is a number, and `on`, `1:30` and `2026-11-30` are texts, which YAML 1.1 reads otherwise.
    """

    _composed = 0
    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._composed += 1
        self._depth += 1
        if self._composed > MOST_VALUES or self._depth > DEEPEST:
            raise _too_large("values" if self._composed > MOST_VALUES else "depth", self.peek_event().start_mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def fetch_flow_collection_start(self, token: type[yaml.Token]) -> None:
        # The scanner looks at every open bracket for every token, long before the values are composed.
        if self.flow_level > DEEPEST:
            raise _too_large("depth", self.get_mark())
        super().fetch_flow_collection_start(token)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        if len(node.value) > MOST_DIGITS:
            raise yaml.MarkedYAMLError(problem=f"a number of {len(node.value)} digits", problem_mark=node.start_mark)
        return int(self.construct_scalar(node), 0 if node.value[:2] in {"0x", "0o"} else 10)


def _too_large(kind: str, mark: yaml.Mark) -> yaml.MarkedYAMLError:
    most = f"more than {MOST_VALUES:,} values" if kind == "values" else f"more than {DEEPEST} levels"
    return yaml.MarkedYAMLError(problem=f"it has {most}", problem_mark=mark)


_REPLACED = {f"tag:yaml.org,2002:{kind}" for kind in ("float", "bool", "int", "timestamp")}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _REPLACED]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(?:\d[\d_]*(?:\.[\d_]*)?(?:[eE][-+]?\d+)|\d[\d_]*\.[\d_]*|\.\d[\d_]*(?:[eE][-+]?\d+)?|\.(?:inf|nan))$"
    ),
    list("-+0123456789."),
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"^(?:[-+]?\d[\d_]*|0o[0-7]+|0x[0-9a-fA-F]+)$"), list("-+0123456789")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile("^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


def _read(text: str, inspect: Callable[[yaml.Node], None] | None = None) -> Any:
    """Return the value of a YAML text; `inspect` sees its nodes as written, before merge keys are resolved.

    Raises:
        yaml.YAMLError: it is no YAML, or larger, deeper or more often repeated by aliases than any config.
    """
    try:
        loader = _Loader(text)
    except UnicodeError as error:  # half of a surrogate pair
        raise yaml.YAMLError(str(error)) from None
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        for count, inner in enumerate(_expanded(node, ()), 1):
            if count > MOST_VALUES:
                raise _too_large("values", inner.start_mark)
        if inspect is not None:
            inspect(node)
        return loader.construct_document(node)
    except (ValueError, OverflowError) as error:  # such as `!!int x`, or an integer of 5,000 digits
        raise yaml.YAMLError(str(error)) from None
    finally:
        loader.dispose()


def _expanded(node: yaml.Node, above: tuple[yaml.Node, ...]) -> Iterator[yaml.Node]:
    """Yield every value, those of an alias wherever it stands."""
    if node in above:
        raise yaml.MarkedYAMLError(problem="an alias stands within what it names", problem_mark=node.start_mark)
    if len(above) > DEEPEST:
        raise _too_large("depth", node.start_mark)
    yield node
    if isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            yield from _expanded(name, (*above, node))
            yield from _expanded(value, (*above, node))
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _expanded(item, (*above, node))


def parse_value(text: str) -> Any:
    """Read one value as YAML does: `2`, `1e-6`, `true`, `null`, `[a, b]`, `{key: 1}` or plain text.

    Raises:
        yaml.YAMLError: it is not YAML, or too large.
    """
    return _read(text)


def read_document(path: str | Path) -> Document:
    """Read a YAML file whose top level is a mapping.

    Raises:
        BadInput: the file is missing, is not YAML, repeats a key, or holds no mapping.
    """
    if problem := path_problem(str(path)):
        raise BadInput(f"{str(path)[:SHOWN_CHARACTERS]!r}: {problem}")
    path = Path(path).expanduser()
    lines: dict[KeyPath, int] = {}
    try:
        data = _read(_text_of(path), lambda node: _collect_lines(node, (), lines, path))
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise BadInput(f"{path}:{line}: not valid YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise BadInput(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    data = {} if data is None else data
    if not isinstance(data, dict):
        raise BadInput(f"{path}: holds a {type(data).__name__}, but a config is a mapping of keys to values")
    return Document(path, data, lines)


def _text_of(path: Path) -> str:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
            raise BadInput(f"{path}: cannot be read: a config is a file, which may be read again; this is none")
        if status.st_size > LARGEST_FILE:
            raise BadInput(f"{path}: has {status.st_size:,} bytes, but a config has at most {LARGEST_FILE:,}")
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file{_nearest_file(path)}") from None
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: cannot be read: {error}") from None


def _collect_lines(node: yaml.Node | None, key: KeyPath, lines: dict[KeyPath, int], path: Path) -> None:
    if isinstance(node, yaml.MappingNode):
        for name_node, value_node in node.value:
            if not isinstance(name_node, yaml.ScalarNode):
                line = name_node.start_mark.line + 1
                raise BadInput(f"{path}:{line}: a key is a plain text, not a list or a mapping")
            child = (*key, name_node.value)
            line = name_node.start_mark.line + 1
            if child in lines:
                dotted = ".".join(map(str, child))
                raise BadInput(f"{path}:{line}: {dotted}: given twice, first on line {lines[child]}")
            lines[child] = line
            _collect_lines(value_node, child, lines, path)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            lines[(*key, index)] = item.start_mark.line + 1
            _collect_lines(item, (*key, index), lines, path)


def _nearest_file(path: Path) -> str:
    if not path.parent.is_dir():
        return f" (there is no directory {path.parent})"
    names = [other.name for other in path.parent.iterdir() if other.suffix in {".yaml", ".yml"}]
    close = nearest(path.name, names)
    return f". Perhaps you meant {path.parent / close}?" if close else ""


@dataclass(frozen=True)
class Problem:
    """A mistake in a config: the key, and what is wrong with it."""

    key: KeyPath
    message: str
