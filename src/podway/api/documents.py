"""YAML and JSON text to plain values, with the line of every field kept, and back.

Read by the core schema of YAML 1.2 (section 10.3), of which JSON is a part: `no`, `010` and times of day are
strings here, not the booleans and numbers of YAML 1.1 that Kubernetes users trip over.
"""

import re
from collections.abc import Iterator
from typing import Any, TypeAlias

import yaml

from podway.errors import InvalidInput

Value: TypeAlias = "bool | int | float | str | list[Value] | dict[str, Value] | None"
Path: TypeAlias = tuple[str | int, ...]

MAX_DEPTH = 100
MAX_NODES = 1_000_000

_TAG = "tag:yaml.org,2002:"
_MERGE = _TAG + "merge"
_RESOLVERS = (
    ("merge", "<<", ["<"]),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"-?(?:0|[1-9][0-9]*)", list("-0123456789")),
    ("float", r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?", list("-0123456789")),
)


class _Loader(yaml.CSafeLoader):
    yaml_implicit_resolvers = {}  # noqa: RUF012 - PyYAML's own form: none of YAML 1.1's


class _Dumper(yaml.CSafeDumper):
    """Quotes what either version of YAML would not read as a string."""


for _name, _pattern, _first in _RESOLVERS:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_TAG + _name, re.compile(rf"(?:{_pattern})\Z"), _first)


class Document:
    """One YAML document. `number` counts from 1; `value` has no null fields, as if they were not written."""

    def __init__(self, node: yaml.Node, source: str, number: int) -> None:
        self.number = number
        self._source = source
        self._node = node
        self._budget = MAX_NODES
        self.value = self._build(node)

    def where(self, path: Path = ()) -> str:
        """Return where a field stands, or the nearest one above it: `pools.yaml, document 2, line 9`."""
        node = self._node
        line = node.start_mark.line
        for step in path:
            child = _child(node, step)
            if child is None:
                break
            line, node = child
        return f"{self._source}, document {self.number}, line {line + 1}"

    def _build(self, node: yaml.Node, depth: int = 0) -> Value:
        if depth > MAX_DEPTH:  # an alias can stand inside what it names
            raise self._error(node, f"nested more than {MAX_DEPTH} levels deep")
        self._budget -= 1
        if self._budget < 0:
            raise InvalidInput(f"{self._source}: document {self.number} unfolds to over {MAX_NODES} values")
        match node:
            case yaml.MappingNode():
                return self._build_mapping(node, depth)
            case yaml.SequenceNode():
                return [self._build(item, depth + 1) for item in node.value]
            case _:
                return self._build_scalar(node)

    def _build_mapping(self, node: yaml.MappingNode, depth: int) -> Value:
        built: dict[str, Value] = {}
        seen = set()
        for key_node, value_node in node.value:
            key = key_node.value
            if not isinstance(key, str) or key_node.tag == _MERGE:
                raise self._error(key_node, "this cannot be a field's name: write each field out")
            if key in seen:
                raise self._error(key_node, f"{key!r} stands twice in one object")
            seen.add(key)
            value = self._build(value_node, depth + 1)
            if value is not None:
                built[key] = value
        return built

    def _build_scalar(self, node: yaml.Node) -> Value:
        text: str = node.value
        match node.tag.removeprefix(_TAG):
            case "str":
                return text
            case "null":
                return None
            case "bool":
                return text.lower() == "true"
            case "int" if len(text) <= 20:
                return int(text)
            case "int" | "float":
                return float(text)
            case tag:
                raise self._error(node, f"the tag {tag!r} is not used in manifests")

    def _error(self, node: yaml.Node, problem: str) -> InvalidInput:
        mark = node.start_mark
        return InvalidInput(f"{self._source}, line {mark.line + 1}: {problem}")


def parse(text: str, *, source: str) -> Iterator[Document]:
    """Yield the documents of a YAML or JSON text that hold anything. `source` names it in messages.

    Raises InvalidInput, naming the line.
    """
    try:
        _check_structure(text, source)
        for number, node in enumerate(yaml.compose_all(text, _Loader), start=1):
            document = Document(node, source, number)
            if document.value is not None:
                yield document
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        context = f" {error.context}" if error.context else ""
        raise InvalidInput(
            f"{source}{line}: not YAML or JSON: {error.problem}{context}",
            hint="check the indentation, quotes and brackets on this line and the one before it",
        ) from error
    except yaml.YAMLError as error:
        raise InvalidInput(f"{source}: not YAML or JSON text: {error}") from error


def dump(value: dict[str, Any]) -> str:
    """Return YAML text that `parse` reads back to the same value."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _check_structure(text: str, source: str) -> None:
    # The C composer calls itself for each level and would overflow the stack.
    depth = 0
    for event in yaml.parse(text, _Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH:
            line = event.start_mark.line + 1 if event.start_mark else "unknown"
            raise InvalidInput(f"{source}, line {line}: nested more than {MAX_DEPTH} levels deep")


def _child(node: yaml.Node, step: str | int) -> tuple[int, yaml.Node] | None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == step:
                return key.start_mark.line, value
    elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
        return node.value[step].start_mark.line, node.value[step]
    return None
