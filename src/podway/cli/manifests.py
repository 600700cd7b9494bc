"""Manifests for `podway apply` and `podway delete`: read, checked one by one, merged with what is stored."""

import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
import msgspec

from podway.api.decode import Manifest, decode
from podway.api.resource import Key, Resource, key, subject
from podway.api.validate import problems
from podway.cli.kinds import DEFAULT_NAMESPACE
from podway.errors import InvalidArgument, InvalidInput, InvalidObject


def read_manifests(filenames: Sequence[str], namespace: str | None) -> list[Manifest]:
    """Read the manifests of files (`-` is standard input); `namespace` is for those that state none.

    Raises InvalidInput for a file that cannot be read or holds none, InvalidObject for what is no resource.
    """
    if not filenames:
        raise click.UsageError("name a manifest with -f FILE (- is standard input)")
    manifests = []
    for filename in filenames:
        source = "standard input" if filename == "-" else filename
        try:
            text = sys.stdin.read() if filename == "-" else Path(filename).read_text("utf-8")
        except OSError as error:
            raise InvalidArgument(
                f"{source}: {error.strerror}", hint="-f takes a file, or - for standard input"
            ) from error
        except UnicodeDecodeError as error:
            raise InvalidInput(f"{source}: is not UTF-8 text ({error.reason} at byte {error.start})") from error
        found = decode(text, source=source)
        if not found:
            raise InvalidInput(f"{source}: holds no object")
        manifests += [_in_namespace(manifest, namespace) for manifest in found]
    return manifests


def _in_namespace(manifest: Manifest, namespace: str | None) -> Manifest:
    """Return a manifest whose object is in a namespace if its kind needs one."""
    obj = manifest.resource
    if not obj.NAMESPACED:
        return manifest
    stated = obj.metadata.namespace
    if namespace and stated and stated != namespace:
        raise InvalidObject(
            subject(key(obj)),
            "metadata.namespace",
            f"is not {namespace!r}, the namespace of -n",
            hint="leave one of the two out",
            origin=manifest.where("metadata.namespace"),
        )
    metadata = msgspec.structs.replace(obj.metadata, namespace=stated or namespace or DEFAULT_NAMESPACE)
    return msgspec.structs.replace(manifest, resource=msgspec.structs.replace(obj, metadata=metadata))


def check_each(manifests: Sequence[Manifest]) -> None:
    """Print everything that is wrong in manifests by themselves but the last, which is raised."""
    wrong = [*_doubles(manifests)]
    for manifest in manifests:
        wrong += [_placed(problem, manifest) for problem in problems(manifest.resource)]
    for problem in wrong[:-1]:
        click.echo(f"podway: {problem}", err=True)
    if wrong:
        raise wrong[-1]


def _doubles(manifests: Sequence[Manifest]) -> Iterator[InvalidObject]:
    first: dict[Key, Manifest] = {}
    for manifest in manifests:
        other = first.setdefault(key(manifest.resource), manifest)
        if other is not manifest:
            problem = InvalidObject(
                subject(key(manifest.resource)), "", f"stands at {other.where()} too", hint="keep one of them"
            )
            yield _placed(problem, manifest)


@contextlib.contextmanager
def placed_in(manifest: Manifest) -> Iterator[None]:
    """Add the place in the manifest to an InvalidObject."""
    try:
        yield
    except InvalidObject as error:
        raise _placed(error, manifest) from error


def _placed(error: InvalidObject, manifest: Manifest) -> InvalidObject:
    origin = manifest.where(error.field)
    return InvalidObject(error.subject, error.field, error.problem, hint=error.hint, origin=origin)


def merge(new: Resource, old: Resource | None) -> Resource:
    """Return what to store: the manifest, with what it does not decide taken from the stored object.

    Those are the status and annotations that it does not name (agents keep facts there). Raises InvalidObject
    if it states that it was made from another version than the stored one.
    """
    if old is None:
        return new
    if new.metadata.resource_version not in ("", old.metadata.resource_version):
        raise InvalidObject(
            subject(key(new)),
            "metadata.resourceVersion",
            f"the object changed since it was read: it is at {old.metadata.resource_version}",
            hint="`podway get -o yaml` it again and edit that, or remove this field to change it all the same",
        )
    metadata = msgspec.structs.replace(
        new.metadata,
        uid=old.metadata.uid,
        creation_timestamp=old.metadata.creation_timestamp,
        resource_version=old.metadata.resource_version,
        generation=old.metadata.generation,
        annotations={**old.metadata.annotations, **new.metadata.annotations},
    )
    status = getattr(old, "status", None)
    observed = {} if status is None else {"status": status}
    return msgspec.structs.replace(new, metadata=metadata, **observed)
