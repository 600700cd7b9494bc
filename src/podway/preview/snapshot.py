"""A cluster in one file: its objects, and what each node's agent knows that is not among them.

The file is JSON with a version. Whatever plans need is in it, so that a change can be previewed elsewhere,
without privileges. ClusterAuthority is left out, and Secrets are without their values.
"""

from collections.abc import Mapping
from ipaddress import ip_interface
from pathlib import Path
from typing import Any

import msgspec

from podway import __version__
from podway.api.encode import to_builtins
from podway.api.kinds import KINDS
from podway.api.kinds.secret import Secret
from podway.api.lease import LeaseRecord
from podway.api.resource import Resource, key, subject
from podway.api.validate import validate
from podway.cluster.view import ClusterView
from podway.errors import InvalidArgument, InvalidInput, InvalidObject
from podway.plan.path import Site
from podway.plan.uplink import Uplink

KIND = "PodwaySnapshot"
VERSION, READABLE = 2, (1, 2)

_ANEW = "make it anew with `podway snapshot -o FILE`"


class Snapshot(msgspec.Struct, frozen=True):
    """A cluster as it was at one time (RFC 3339, UTC).

    `sites` holds the nodes whose agent answered, `silent` says of each other one why nothing is known of it.
    """

    taken: str
    objects: tuple[Resource, ...]
    sites: Mapping[str, Site]
    silent: Mapping[str, str]

    @property
    def view(self) -> ClusterView:
        """The view from which nodes are planned."""
        return ClusterView.of(self.objects)


class _Uplink(msgspec.Struct, frozen=True):
    device: str
    mtu: int
    addresses: tuple[str, ...]


class _Node(msgspec.Struct, frozen=True, omit_defaults=True):
    uplink: _Uplink | None = None
    leases: tuple[LeaseRecord, ...] = ()
    problem: str = ""


class _Head(msgspec.Struct, frozen=True):
    kind: str = ""
    version: int = 0
    podway: str = ""


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    kind: str
    version: int
    podway: str
    taken: str
    objects: tuple[dict[str, Any], ...]
    nodes: dict[str, _Node]
    revision: int | None = None
    """In files of version 1, of a store that had one order for all kinds."""


def site_of(uplink: Any, leases: Any) -> Site:
    """Return a node's site from its agent's answers: `uplink` of `status`, and `leases`.

    Raises InvalidInput if they are not what an agent of this version answers.
    """
    try:
        return _site(_Node(msgspec.convert(uplink, _Uplink), msgspec.convert(leases, tuple[LeaseRecord, ...])))
    except (msgspec.ValidationError, ValueError) as error:
        raise InvalidInput(
            f"its agent's answer is not understood: {error}",
            hint="is the agent of the same version as this command?",
        ) from error


def encode(snapshot: Snapshot) -> bytes:
    """Return a snapshot as the text of its file."""
    nodes = {name: _record(site) for name, site in snapshot.sites.items()}
    nodes |= {name: _Node(problem=problem) for name, problem in snapshot.silent.items()}
    file = _File(
        kind=KIND,
        version=VERSION,
        podway=__version__,
        taken=snapshot.taken,
        objects=tuple(to_builtins(obj) for obj in snapshot.objects if obj.LEAVES_STORE),
        nodes=nodes,
    )
    return msgspec.json.format(msgspec.json.encode(file), indent=1) + b"\n"


def read(path: Path) -> Snapshot:
    """Read a snapshot's file. Raises InvalidInput, or InvalidObject for an object in it."""
    try:
        return decode(path.read_bytes(), source=str(path))
    except OSError as error:
        raise InvalidArgument(f"{path}: {error.strerror}", hint=f"name a snapshot, or {_ANEW}") from error


def decode(data: bytes, *, source: str) -> Snapshot:
    """Return the snapshot in a text; `source` names it in messages.

    Raises InvalidInput if it is damaged, of another version or no snapshot; InvalidObject, which names object
    and field, if an object in it cannot be right.
    """
    if data[:1] not in (b"{", b""):
        raise InvalidInput(f"{source}: is no snapshot, but other text", hint=f"manifests go to -f; {_ANEW}")
    try:
        head = msgspec.json.decode(data, type=_Head)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"{source}: is no snapshot ({error})", hint=_ANEW) from error
    except msgspec.DecodeError as error:
        raise InvalidInput(
            f"{source}: the snapshot is damaged, or cut short: {error}", hint=f"copy it again, or {_ANEW}"
        ) from error
    if head.kind != KIND:
        found = f"its kind is {head.kind!r}" if head.kind else "it states no kind"
        raise InvalidInput(
            f"{source}: is no snapshot: {found}, not {KIND!r}", hint=f"manifests go to -f; for a snapshot, {_ANEW}"
        )
    if head.version not in READABLE:
        raise InvalidInput(
            f"{source}: is a snapshot of version {head.version}; Podway {__version__} reads versions "
            f"{READABLE[0]} to {READABLE[-1]}",
            hint=f"read it with Podway {head.podway or 'of its time'}, which wrote it, or {_ANEW}",
        )
    try:
        file = msgspec.json.decode(data, type=_File)
        sites = {name: _site(node) for name, node in file.nodes.items() if not node.problem}
    except (msgspec.ValidationError, ValueError) as error:
        raise InvalidInput(
            f"{source}: the snapshot is damaged: {error}", hint=f"copy it again, or {_ANEW}"
        ) from error
    return Snapshot(
        file.taken,
        tuple(_object(shape, f"{source}, objects[{number}]") for number, shape in enumerate(file.objects)),
        sites,
        {name: node.problem for name, node in file.nodes.items() if node.problem},
    )


def _object(shape: dict[str, Any], origin: str) -> Resource:
    kind = KINDS.get(str(shape.get("kind")))
    if kind is None:
        raise InvalidInput(f"{origin}: {shape.get('kind')!r} is not a kind that Podway knows", hint=_ANEW)
    try:
        obj: Resource = msgspec.convert(shape, kind)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"{origin}: {kind.KIND}: {error}", hint=f"copy it again, or {_ANEW}") from error
    if isinstance(obj, Secret):
        return obj  # redacted, which no Secret may be that is to be stored
    try:
        validate(obj)
    except InvalidObject as error:
        raise InvalidObject(
            subject(key(obj)), error.field, error.problem, hint=error.hint, origin=origin
        ) from error
    return obj


def _record(site: Site) -> _Node:
    up = site.uplink
    uplink = _Uplink(up.device, up.mtu, tuple(map(str, up.addresses))) if up else None
    return _Node(uplink, tuple(map(LeaseRecord.of, site.leases)))


def _site(node: _Node) -> Site:
    up = node.uplink
    uplink = Uplink(up.device, up.mtu, tuple(map(ip_interface, up.addresses))) if up else None
    return Site(uplink, tuple(record.lease for record in node.leases))
