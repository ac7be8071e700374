"""YAML files read with the line of every key, so that an error can point at it."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from rlhf_ray.config.errors import BadInput
from rlhf_ray.config.nearest import nearest

KeyPath = tuple[str | int, ...]


@dataclass(frozen=True)
class Document:
    """The content of a YAML file and where each key stands in it; or settings that no file holds."""

    path: Path | None
    """None: they were given as a mapping."""
    data: dict[str, Any]
    lines: dict[KeyPath, int] = field(default_factory=dict)
    """Line (from 1) of each key path."""

    def where(self, key: KeyPath) -> str:
        """File and line of a key, or of the nearest section around it; empty where there is no file."""
        if self.path is None:
            return ""
        for length in range(len(key), 0, -1):
            if key[:length] in self.lines:
                return f"{self.path}:{self.lines[key[:length]]}"
        return str(self.path)


class _Loader(yaml.SafeLoader):
    """Safe YAML with the scalars of YAML 1.2: `1e-6` is a number and `on` a text, which YAML 1.1 reads otherwise."""


_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern) for tag, pattern in resolvers if tag not in {"tag:yaml.org,2002:float", "tag:yaml.org,2002:bool"}
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(?:\d[\d_]*\.?[\d_]*(?:[eE][-+]?\d+)|\d[\d_]*\.[\d_]*|\.\d[\d_]*(?:[eE][-+]?\d+)?|\.(?:inf|nan))$"
    ),
    list("-+0123456789."),
)

_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile("^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)


def parse_value(text: str) -> Any:
    """Read one value as YAML does: `2`, `1e-6`, `true`, `null`, `[a, b]`, `{key: 1}` or plain text."""
    return yaml.load(text, Loader=_Loader)


def read_document(path: str | Path) -> Document:
    """Read a YAML file whose top level is a mapping.

    Raises:
        BadInput: the file is missing, is not YAML, repeats a key, or holds no mapping.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file{_nearest_file(path)}") from None
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: cannot be read: {error}") from None
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        lines: dict[KeyPath, int] = {}
        _collect_lines(node, (), lines, path)
        data = loader.construct_document(node) if node is not None else {}
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise BadInput(f"{path}:{line}: not valid YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise BadInput(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    finally:
        loader.dispose()
    if not isinstance(data, dict):
        raise BadInput(f"{path}: holds a {type(data).__name__}, but a config is a mapping of keys to values")
    return Document(path, data, lines)


def _collect_lines(node: yaml.Node | None, key: KeyPath, lines: dict[KeyPath, int], path: Path) -> None:
    if isinstance(node, yaml.MappingNode):
        for name_node, value_node in node.value:
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
