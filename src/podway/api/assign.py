"""`FIELD=VALUE` to a changed resource: fields are named as in a manifest, below `spec`. Pure.

Besides, what a kind keeps in labels and annotations can be set by the names that it gives to it (SETTABLE), and
every label as `labels.KEY=VALUE`.
"""

import typing
from collections.abc import Iterable, Iterator, Sequence
from types import NoneType
from typing import Any

import msgspec

from podway.api.encode import to_builtins
from podway.api.resource import Resource, invalid
from podway.suggestion import did_you_mean

LABEL_PREFIX = "labels."


def assign(obj: Resource, assignments: Iterable[str]) -> Resource:
    """Return the object with each `FIELD=VALUE` carried out; an empty value takes back the default.

    Raises InvalidObject for a field that there is not, or a value that the field cannot have.
    """
    shape = to_builtins(obj)
    for assignment in assignments:
        field, equals, text = assignment.partition("=")
        if not equals:
            raise invalid(obj, field, "has no value", f"write {field}=VALUE; {field}= takes back the default")
        if field in obj.SETTABLE:
            _place(shape, ("metadata", *obj.SETTABLE[field]), text or None)
        elif field.startswith(LABEL_PREFIX):
            _place(shape, ("metadata", "labels", field.removeprefix(LABEL_PREFIX)), text or None)
        else:
            path = field.split(".")
            _place(shape, ("spec", *path), _value(obj, field, _type_of(obj, path), text) if text else None)
    return msgspec.convert(shape, type(obj))


def fields(kind: type[Resource]) -> dict[str, tuple[str, ...]]:
    """Return what can be set of a kind, by name, with the values that are possible where those are few."""
    spec = _struct_fields(kind).get("spec")
    return {**dict.fromkeys(kind.SETTABLE, ()), **dict(_leaves(spec, ""))}


def differences(before: Resource, after: Resource) -> Iterator[str]:
    """Say what two versions of an object differ in: `encapsulation none → vxlan`."""
    kind = type(after)
    for name in fields(kind):
        was, now = _stated(before, name), _stated(after, name)
        if was != now:
            yield f"{name} {_shown(was)} → {_shown(now)}"
    told = {name for place, name in kind.SETTABLE.values() if place == "labels"}
    was, now = before.metadata.labels, after.metadata.labels
    for name in sorted((was.keys() | now.keys()) - told):
        if was.get(name) != now.get(name):
            yield f"{LABEL_PREFIX}{name} {_shown(was.get(name))} → {_shown(now.get(name))}"


def _stated(obj: Resource, name: str) -> Any:
    if name in obj.SETTABLE:
        place, note = obj.SETTABLE[name]
        return getattr(obj.metadata, place).get(note, "")
    value: Any = getattr(obj, "spec", None)
    for part in name.split("."):
        value = getattr(value, _attribute(type(value), part))
    return value


def _attribute(kind: Any, wire_name: str) -> str:
    return next(field.name for field in msgspec.structs.fields(kind) if field.encode_name == wire_name)


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    return "nothing" if value is None or value == "" else str(value)


def _leaves(kind: Any, before: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    for name, of in _struct_fields(kind).items():
        plain = _without_none(of)
        if _struct_fields(plain) and plain is of:
            yield from _leaves(of, f"{before}{name}.")
        elif _reads(plain):
            yield f"{before}{name}", _choices(plain)


def _reads(kind: Any) -> bool:
    """Tell whether a value of this type can be written in one word."""
    return bool(typing.get_origin(kind) is typing.Literal or kind in (str, int, bool) or _is_list(kind))


def _is_list(kind: Any) -> bool:
    return typing.get_origin(kind) is tuple and typing.get_args(kind)[0] is str


def _choices(kind: Any) -> tuple[str, ...]:
    if kind is bool:
        return ("true", "false")
    return tuple(map(str, typing.get_args(kind))) if typing.get_origin(kind) is typing.Literal else ()


def _type_of(obj: Resource, path: Sequence[str]) -> Any:
    """Return the type of a field. Raises InvalidObject if there is none that can be set."""
    kind = _struct_fields(type(obj)).get("spec")
    for part in path:
        kind = _without_none(_struct_fields(kind).get(part))
    if kind is None or not _reads(kind):
        name, known = ".".join(path), fields(type(obj))
        below = [other for other in known if other.startswith(f"{name}.")]
        problem = "has fields of its own" if below else "cannot be set so" if kind else "is not a field here"
        raise invalid(obj, name, problem, _nearest(name, below or list(known)))
    return kind


def _value(obj: Resource, field: str, kind: Any, text: str) -> Any:
    if choices := _choices(kind):
        if text not in choices:
            raise invalid(obj, f"spec.{field}", f"{text!r} is not possible", _nearest(text, choices))
        return text == "true" if kind is bool else text
    if kind is int:
        try:
            return int(text)
        except ValueError:
            hint = "write digits alone, such as 26"
            raise invalid(obj, f"spec.{field}", f"{text!r} is not a whole number", hint) from None
    return [part.strip() for part in text.split(",")] if _is_list(kind) else text


def _place(shape: dict[str, Any], path: Sequence[str], value: Any) -> None:
    for step in path[:-1]:
        shape = shape.setdefault(step, {})
    if value is None:
        shape.pop(path[-1], None)
    else:
        shape[path[-1]] = value


def _struct_fields(kind: Any) -> dict[str, Any]:
    """Return the types of a Struct's fields by their names on the wire; nothing for other types."""
    if not (isinstance(kind, type) and issubclass(kind, msgspec.Struct)):
        return {}
    return {field.encode_name: field.type for field in msgspec.structs.fields(kind)}


def _without_none(kind: Any) -> Any:
    options = [option for option in typing.get_args(kind) if option is not NoneType]
    return options[0] if NoneType in typing.get_args(kind) and len(options) == 1 else kind


def _nearest(text: str, known: Sequence[str]) -> str:
    return did_you_mean(text, known, otherwise=f"known here: {', '.join(known)}", written="`{}`")
