"""CustomResourceDefinitions: what a Kubernetes API server has to know of Podway's own kinds. Pure.

The schemas are made of the types in podway.api.kinds, so there is nothing to keep in step: structure and required
fields of the fields, choices of the Literals, limits of `LIMITS` and `SCHEMA`, rules of `RULES`, columns of
`COLUMNS`, and the texts of `kubectl explain` of the docstrings.

A schema states no default. An API server fills defaults in when it reads, so a new field with one would stand in
every object at once, and agents that are not upgraded yet, to which an unknown field is a mistake, would reject
them all.
"""

import ast
import functools
import inspect
import re
import sys
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, Literal

import msgspec

from podway import __version__
from podway.api.columns import AGE, Column
from podway.api.encode import to_yaml
from podway.api.kinds import KINDS
from podway.api.meta import Record, Rule
from podway.api.resource import GROUP, Resource, api_version, has_status

MANY = 1024
"""Entries that a list may have where its kind says nothing: rules in CEL are admitted by what they may cost."""
LONG = 1024
"""Characters that a text may have where its kind says nothing."""

VERSION = f"{GROUP}/version"
"""Annotation of a definition: of which Podway it is."""

Schema = dict[str, Any]


def own_kinds() -> tuple[type[Resource], ...]:
    """Return Podway's own kinds, by name; Kubernetes and its projects define the others."""
    return tuple(kind for _, kind in sorted(KINDS.items()) if api_version(kind).partition("/")[0] == GROUP)


def definition(kind: type[Resource]) -> dict[str, Any]:
    """Return the CustomResourceDefinition of one of Podway's own kinds."""
    group, _, version = api_version(kind).partition("/")
    names: dict[str, Any] = {
        "kind": kind.KIND,
        "listKind": f"{kind.KIND}List",
        "plural": kind.NAMES.plural,
        "singular": kind.KIND.lower(),
        "categories": ["podway"],
    }
    if kind.NAMES.short:
        names["shortNames"] = list(kind.NAMES.short)
    served: dict[str, Any] = {
        "name": version,
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": _root(kind)},
        "additionalPrinterColumns": [
            _printed(one) for one in (*(other for other in kind.COLUMNS if other != AGE), AGE) if one.path
        ],
    }
    if kind.SELECTABLE:
        served["selectableFields"] = [{"jsonPath": f".{path}"} for path in kind.SELECTABLE]
    if kind.JUDGED or has_status(kind):
        served["subresources"] = {"status": {}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{kind.NAMES.plural}.{group}", "annotations": {VERSION: __version__}},
        "spec": {
            "group": group,
            "scope": "Namespaced" if kind.NAMESPACED else "Cluster",
            "names": names,
            "versions": [served],
        },
    }


def manifest() -> str:
    """Return the definitions of all of Podway's own kinds as YAML: deploy/crds.yaml."""
    head = "# Made of the types in src/podway/api/kinds by ./dev manifests: change those.\n"
    return head + "".join(f"---\n{to_yaml(definition(kind))}" for kind in own_kinds())


def _printed(column: Column) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "name": column.header,
        "type": column.type,
        "jsonPath": column.path,
    }
    if column.wide:
        shown["priority"] = 1
    return shown


_CONDITIONS: Schema = {
    "type": "object",
    "description": "What is observed of the object.",
    "properties": {
        "conditions": {
            "type": "array",
            "description": "Accepted tells whether the object holds. A pool that does not is set aside: "
            "nodes go on by its last good state, if they know one.",
            "maxItems": 16,
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["type"],
            "items": {
                "type": "object",
                "required": ["type", "status", "lastTransitionTime", "reason", "message"],
                "properties": {
                    "type": {"type": "string", "maxLength": 316},
                    "status": {"type": "string", "enum": ["True", "False", "Unknown"]},
                    "observedGeneration": {"type": "integer", "format": "int64", "minimum": 0},
                    "lastTransitionTime": {"type": "string", "format": "date-time"},
                    "reason": {"type": "string", "minLength": 1, "maxLength": LONG},
                    "message": {"type": "string", "maxLength": 32768},
                },
            },
        }
    },
}


def _root(kind: type[Resource]) -> Schema:
    schema = _object(kind, "")
    properties = schema["properties"]
    properties["apiVersion"], properties["kind"] = {"type": "string"}, {"type": "string"}
    properties["metadata"] = {"type": "object"}
    if kind.JUDGED:
        properties["status"] = _CONDITIONS
    if kind.ONLY:
        message = f"the one {kind.KIND} is named {kind.ONLY}"
        _add_rule(schema, Rule("", f"self.metadata.name == '{kind.ONLY}'", message))
    return schema


def _say_more(schema: Schema, kind: type[Record]) -> None:
    for path, (low, high) in kind.LIMITS.items():
        _at(schema, path).update(minimum=low, maximum=high)
    for path, more in kind.SCHEMA.items():
        _at(schema, path).update(more)
    for rule in kind.RULES:
        _add_rule(_at(schema, rule.path), rule)


def _at(schema: Schema, path: str) -> Schema:
    """Return the schema of a field: `spec.rules[].cidr`. Raises KeyError if there is none."""
    for step in filter(None, path.split(".")):
        name, listed, _ = step.partition("[]")
        schema = schema["properties"][name]
        if listed:
            schema = schema["items"]
    return schema


def _add_rule(schema: Schema, rule: Rule) -> None:
    schema.setdefault("x-kubernetes-validations", []).append({"rule": rule.rule, "message": rule.message})


def _object(kind: type[msgspec.Struct], description: str) -> Schema:
    hints = typing.get_type_hints(kind)
    texts = _texts(kind)
    fields = msgspec.structs.fields(kind)
    properties = {field.encode_name: _schema(hints[field.name], texts.get(field.name, "")) for field in fields}
    required = [field.encode_name for field in fields if field.required and field.name != "metadata"]
    schema: Schema = {"type": "object", "description": description or _docstring(kind), "properties": properties}
    if required:
        schema["required"] = required
    if issubclass(kind, Record):
        _say_more(schema, kind)
    return schema


def _schema(hint: Any, text: str) -> Schema:
    schema = _bare(hint, text)
    if text and "description" not in schema:
        schema["description"] = text
    return schema


def _bare(hint: Any, text: str) -> Schema:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        (alone,) = [one for one in arguments if one is not type(None)]
        return _bare(alone, text)
    if origin is Literal:
        return {"type": "string", "enum": list(arguments)}
    if origin is tuple:
        return {"type": "array", "maxItems": MANY, "items": _schema(arguments[0], "")}
    if origin is dict:
        return {
            "type": "object",
            "maxProperties": MANY,
            "additionalProperties": _schema(arguments[1], ""),
        }
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        return _object(hint, text and f"{text} {_docstring(hint)}")
    return dict(_SCALARS[hint])


_SCALARS: Mapping[Any, Schema] = {
    bool: {"type": "boolean"},
    int: {"type": "integer", "format": "int64"},
    str: {"type": "string", "maxLength": LONG},
    datetime: {"type": "string", "format": "date-time"},
}


def _docstring(kind: type) -> str:
    """Return what a type is: the first paragraph and those behind it, each on a line."""
    paragraphs = inspect.cleandoc(kind.__doc__ or "").split("\n\n")
    return _public("\n".join(" ".join(part.split()) for part in paragraphs), kind)


def _texts(kind: type[msgspec.Struct]) -> dict[str, str]:
    """Return what is said of the fields: by a string behind a field or behind the alias that is its type, and by
    those sentences of the type's docstring in which it stands between backticks."""
    declared = _declared(kind.__module__).get(kind.__name__, {})
    aliases = _declared(kind.__module__)[""]
    prose = " ".join(inspect.cleandoc(kind.__doc__ or "").split())
    sentences = re.split(r"(?<=\.) (?=[A-Z`])", prose)
    found: dict[str, str] = {}
    for field in msgspec.structs.fields(kind):
        annotation, own = declared.get(field.name, ("", ""))
        said = [one for one in sentences if f"`{field.name}`" in one]
        parts = [own, aliases.get(annotation, ("", ""))[1], *said]
        found[field.name] = _public(" ".join(filter(None, parts)), kind)
    return found


def _public(text: str, kind: type) -> str:
    """Return a text with the fields called as they are in a manifest."""
    fields = msgspec.structs.fields(kind) if issubclass(kind, msgspec.Struct) else ()
    for field in fields:
        text = text.replace(f"`{field.name}`", f"`{field.encode_name}`")
    return text


@functools.cache
def _declared(module: str) -> dict[str, dict[str, tuple[str, str]]]:
    """Return of each class of a module its fields, under "" the module's own names: annotation and text."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(sys.modules[module])))
    found = {"": dict(_documented(tree.body))}
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            found[node.name] = dict(_documented(node.body))
    return found


def _documented(body: list[ast.stmt]) -> Iterator[tuple[str, tuple[str, str]]]:
    for number, node in enumerate(body):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            behind = body[number + 1] if number + 1 < len(body) else None
            text = ""
            if isinstance(behind, ast.Expr) and isinstance(behind.value, ast.Constant):
                text = " ".join(str(behind.value.value).split())
            yield node.target.id, (ast.unparse(node.annotation), text)
