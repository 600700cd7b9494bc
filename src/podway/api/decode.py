"""Manifests to typed resources: every mistake is told with file, line, object, field and what to do."""

import re
import typing
from collections.abc import Iterator

import msgspec

from podway.api.documents import Document, Path, Value, parse
from podway.api.kinds import KINDS
from podway.api.resource import Key, Resource, api_version, subject
from podway.errors import InvalidObject
from podway.suggestion import did_you_mean

_JSON_TYPE = {
    "array": "a list",
    "bool": "true or false",
    "float": "a number with a fraction",
    "int": "a whole number",
    "null": "nothing",
    "object": "an object with fields",
    "str": "a string",
}


class Manifest(msgspec.Struct, frozen=True):
    """One resource as it was read, and where."""

    resource: Resource
    document: Document
    path: Path
    """Where the resource stands in its document: () or, in a List, ("items", 3)."""

    def where(self, field: str = "") -> str:
        """Return file, document and line of a field such as `spec.excluded[1]`."""
        return self.document.where((*self.path, *_steps(field)))


def decode(text: str, *, source: str) -> tuple[Manifest, ...]:
    """Read all resources of a YAML or JSON text: documents, and the items of Lists in them.

    `source` names the text in messages. Raises InvalidInput, or InvalidObject for what is well-formed text but
    no resource.
    """
    return tuple(
        Manifest(_resource(value, document, path), document, path)
        for document in parse(text, source=source)
        for value, path in _objects(document)
    )


def _objects(document: Document) -> Iterator[tuple[dict[str, Value], Path]]:
    """Yield the objects of a document; the items of a `PodList` get the kind that its name implies."""
    value = document.value
    kind = value.get("kind") if isinstance(value, dict) else None
    if not (isinstance(value, dict) and isinstance(kind, str) and kind.endswith("List")):
        yield _object(value, document, ()), ()
        return
    items = value.get("items", [])
    if not isinstance(items, list):
        raise InvalidObject(kind, "items", "is not a list", origin=document.where(("items",)))
    implied = {"apiVersion": value.get("apiVersion"), "kind": kind.removesuffix("List")}
    for number, item in enumerate(items):
        path = ("items", number)
        obj = _object(item, document, path)
        yield (obj if kind == "List" else {**implied, **obj}), path


def _object(value: Value, document: Document, path: Path) -> dict[str, Value]:
    if not isinstance(value, dict):
        raise InvalidObject(
            "document",
            "",
            "is not an object",
            hint="it needs apiVersion, kind, metadata, spec",
            origin=document.where(path),
        )
    return value


def _resource(value: dict[str, Value], document: Document, path: Path) -> Resource:
    kind = _kind(value, document, path)
    name = subject(_claimed_key(value))
    if value.get("apiVersion") not in typing.get_args(_fields(kind)["apiVersion"]):
        found = value.get("apiVersion")
        raise InvalidObject(
            name,
            "apiVersion",
            "is missing" if found is None else f"{found!r} is not known for this kind",
            hint=f"write `apiVersion: {api_version(kind)}`",
            origin=document.where((*path, "apiVersion")),
        )
    try:
        resource = msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        field, problem, hint = _translate(str(error), kind, value)
        raise InvalidObject(
            name, field, problem, hint=hint, origin=document.where((*path, *_steps(field)))
        ) from error
    for field, hint in _strangers(value.get("spec"), _fields(kind)["spec"], "spec") if kind.COMPLETE else ():
        origin = document.where((*path, *_steps(field)))
        raise InvalidObject(name, field, "is not a field here", hint=hint, origin=origin)
    return resource


def _strangers(value: Value, kind: typing.Any, path: str) -> Iterator[tuple[str, str]]:
    """Yield the fields that a type does not have, each with a hint."""
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from _strangers(item, typing.get_args(_stated(kind))[0], f"{path}[{index}]")
    elif isinstance(value, dict):
        fields = _fields(_stated(kind))
        for name, part in value.items():
            if name in fields:
                yield from _strangers(part, fields[name], f"{path}.{name}")
            elif fields:
                yield f"{path}.{name}", _nearest(name, list(fields))


def _kind(value: dict[str, Value], document: Document, path: Path) -> type[Resource]:
    kind = value.get("kind")
    if isinstance(kind, str) and kind in KINDS:
        return KINDS[kind]
    name = _claimed_key(value)[2]
    raise InvalidObject(
        f"object {name}" if name else "object",
        "kind",
        "is missing" if kind is None else f"{kind!r} is not a kind that Podway knows",
        hint=_nearest(str(kind or ""), sorted(KINDS)),
        origin=document.where((*path, "kind")),
    )


def _claimed_key(value: dict[str, Value]) -> Key:
    """Return kind, namespace and name as far as they are strings, for messages about a wrong object."""
    metadata = value.get("metadata")
    fields = metadata if isinstance(metadata, dict) else {}
    kind, namespace, name = value.get("kind"), fields.get("namespace"), fields.get("name")
    texts = [text if isinstance(text, str) else "" for text in (kind, namespace, name)]
    return (texts[0], texts[1], texts[2])


_UNKNOWN = re.compile(r"Object contains unknown field `(?P<name>.*?)`")
_MISSING = re.compile(r"Object missing required field `(?P<name>.*?)`")
_WRONG_TYPE = re.compile(r"Expected `(?P<expected>.*?)`, got `(?P<got>.*?)`")
_WRONG_ENUM = re.compile(r"Invalid enum value (?P<got>.*?)(?: - at|$)")
_AT = re.compile(r" - at (?:`key` in )?`\$\.?(?P<path>.*)`$")


def _translate(message: str, kind: type[Resource], value: Value) -> tuple[str, str, str]:
    """Return field, problem and hint of a msgspec message."""
    at = _AT.search(message)
    path = at["path"] if at else ""
    if unknown := _UNKNOWN.match(message):
        fields = _fields(_type_at(kind, _steps(path)))
        return _join(path, unknown["name"]), "is not a field here", _nearest(unknown["name"], list(fields))
    if missing := _MISSING.match(message):
        return _join(path, missing["name"]), "is missing", f"add `{missing['name']}` to the object"
    if wrong := _WRONG_TYPE.match(message):
        expected = [part for part in wrong["expected"].split(" | ") if part != "null"]
        problem = f"must be {' or '.join(_JSON_TYPE.get(part, part) for part in expected)}"
        hint = "put it in quotes" if expected == ["str"] and wrong["got"] in ("int", "float", "bool") else ""
        return _name_key(path, value), f"{problem}, not {_JSON_TYPE.get(wrong['got'], wrong['got'])}", hint
    if wrong := _WRONG_ENUM.match(message):
        choices = typing.get_args(_type_at(kind, _steps(path)))
        return path, f"{wrong['got']} is not possible", _nearest(wrong["got"].strip("'"), list(choices))
    return path, message.split(" - at ", maxsplit=1)[0], ""


def _name_key(path: str, value: Value) -> str:
    """Put the key into a path that ends in `[...]`: msgspec does not say which value of a dict is wrong."""
    if not path.endswith("[...]"):
        return path
    parent = path.removesuffix("[...]")
    for step in _steps(parent):
        value = value[step]  # type: ignore[index]
    wrong = (key for key, text in value.items() if not isinstance(text, str))  # type: ignore[union-attr]
    return f"{parent}[{next(wrong, '...')}]"


def _type_at(kind: typing.Any, path: Path) -> typing.Any:
    """Return the type of the field at a path below `kind`."""
    for step in path:
        kind = _stated(typing.get_args(kind)[0] if isinstance(step, int) else _fields(kind).get(step))
    return kind


def _stated(kind: typing.Any) -> typing.Any:
    """Return what a type is where it is not None."""
    options = [option for option in typing.get_args(kind) if option is not type(None)]
    return options[0] if type(None) in typing.get_args(kind) and len(options) == 1 else kind


def _fields(kind: typing.Any) -> dict[str, typing.Any]:
    """Return the fields of a Struct type by their names on the wire."""
    if not (isinstance(kind, type) and issubclass(kind, msgspec.Struct)):
        return {}
    return {field.encode_name: field.type for field in msgspec.structs.fields(kind)}


def _steps(field: str) -> Path:
    """Split `spec.excluded[1]` into its steps."""
    parts = re.findall(r"\[([^\]]*)\]|([^.\[\]]+)", field)
    return tuple(int(index) if index.isdigit() else index or name for index, name in parts)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _nearest(text: str, known: list[str]) -> str:
    return did_you_mean(text, known, otherwise=f"known here: {', '.join(known)}", written="`{}`")
