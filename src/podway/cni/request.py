"""Requests of a container runtime: what CNI_* variables and stdin mean, checked before anyone acts on it.

`parse` gives one of the typed requests below or raises CniError with the specification's code. A DEL is
read leniently, since its duty is to clean up: it needs to know which attachment, and no more.

VERSION is not among the requests: the shim answers it by itself.
"""

from collections.abc import Mapping
from ipaddress import ip_interface
from typing import Any, TypeAlias, TypeVar

import msgspec

from podway.api.addresses import Address, Family
from podway.api.lease import Attachment
from podway.cni.arguments import PodReference, parse_arguments
from podway.cni.names import require_attachment, require_netns, require_network, require_present
from podway.cni.result import Dns, Result, read
from podway.cni.spec import CURRENT, VERSIONS, Code
from podway.errors import CniError
from podway.suggestion import did_you_mean

VALID_ATTACHMENTS = "cni.dev/valid-attachments"
CAPABILITIES = ("ips",)
"""Capabilities of the plugin: what its configuration may list under `capabilities`."""

TOLD = ("bandwidth",)
"""Capabilities of chained plugins of which this one is told, too: what its configuration may list besides."""

SINCE = {"ADD": "0.3.0", "DEL": "0.3.0", "CHECK": "0.4.0", "GC": "1.1.0", "STATUS": "1.1.0"}
"""Each command and the version of the specification that brought it (or the oldest spoken here)."""

UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for bytes that are not JSON, not UTF-8, or nested too deep."""

T = TypeVar("T")


class Add(msgspec.Struct, frozen=True, kw_only=True):
    """Attach a container to the network.

    `netns` is the namespace's path as the runtime gave it. `addresses` are wanted ones, at most one a
    family. `pools` names the pools to choose from where the configuration does. `previous` is the result of
    the chain's plugins before this one. `limited` tells that a plugin after this one limits the bandwidth.
    """

    version: str
    network: str
    attachment: Attachment
    netns: str
    pod: PodReference = PodReference()
    addresses: tuple[Address, ...] = ()
    pools: dict[Family, tuple[str, ...]] = {}
    dns: Dns = Dns()
    previous: Result | None = None
    limited: bool = False


class Delete(msgspec.Struct, frozen=True, kw_only=True):
    """Detach a container; what is already gone is no error. `netns` may be empty."""

    version: str
    network: str
    attachment: Attachment
    netns: str = ""


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """Tell whether an attachment still is as ADD left it; `previous` is the whole chain's result."""

    version: str
    network: str
    attachment: Attachment
    netns: str
    previous: Result


class GarbageCollect(msgspec.Struct, frozen=True, kw_only=True):
    """Detach everything of the network that is not among the `valid` attachments."""

    version: str
    network: str
    valid: frozenset[Attachment]


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """Tell whether an ADD could be served now."""

    version: str


Request: TypeAlias = Add | Delete | Check | GarbageCollect | Status


class _ValidAttachment(msgspec.Struct, frozen=True):
    container: str = msgspec.field(name="containerID")
    ifname: str


class _Ipam(msgspec.Struct, frozen=True):
    type: str = ""


class _Config(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The configuration: the specification's keys (CNI, "Plugin configuration objects"), then our own."""

    cni_version: str = ""
    name: str = ""
    type: str = ""
    args: dict[str, msgspec.Raw] = {}
    capabilities: dict[str, bool] = {}
    dns: Dns = Dns()
    ip_masq: bool = False
    ipam: _Ipam = _Ipam()
    runtime_config: dict[str, msgspec.Raw] = {}
    prev_result: msgspec.Raw = msgspec.Raw()
    # Go writes a list that was never filled as null: libcni, with no attachment left, sends that.
    valid_attachments: tuple[_ValidAttachment, ...] | msgspec.UnsetType | None = msgspec.field(
        default=msgspec.UNSET, name=VALID_ATTACHMENTS
    )

    ipv4_pools: tuple[str, ...] = msgspec.field(default=(), name="ipv4Pools")
    ipv6_pools: tuple[str, ...] = msgspec.field(default=(), name="ipv6Pools")


class _Named(msgspec.Struct, frozen=True, rename="camel"):
    """What a DEL and the choice of a version read of a configuration."""

    cni_version: str = ""
    name: str = ""


_KNOWN = frozenset(field.encode_name for field in msgspec.structs.fields(_Config))
_CLUSTER_WIDE = {"mtu": "remove it: all pods of a cluster have one MTU, spec.mtu of its NetworkConfig"}
"""Keys of other plugins for what here is the cluster's to say, and where it says it."""

_CONFIG = msgspec.json.Decoder(_Config)
_NAMED = msgspec.json.Decoder(_Named)
_KEYS = msgspec.json.Decoder(dict[str, msgspec.Raw])


def parse(environment: Mapping[str, str], stdin: bytes) -> Request:
    """Return what the runtime asks for; `environment` holds the CNI_* variables.

    Raises CniError.
    """
    command = environment.get("CNI_COMMAND", "")
    if command not in SINCE:
        raise CniError(
            Code.INVALID_ENVIRONMENT,
            f"CNI_COMMAND {command!r} is no command of the CNI specification",
            hint=f"set CNI_COMMAND to one of {', '.join(SINCE)}, VERSION",
        )
    if command == "DEL":
        return _parse_delete(environment, stdin)
    version = _require_version(command, _decode(stdin, _NAMED).cni_version)
    config = _decode(stdin, _CONFIG)
    _refuse_unknown_keys(stdin)
    if command == "STATUS":
        return Status(version=version)
    network = require_network(config.name)
    if command == "GC":
        return GarbageCollect(version=version, network=network, valid=_valid_attachments(config))
    require_present(environment, "CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME")
    attachment = require_attachment(environment)
    netns = require_netns(environment)
    previous = _previous(config)
    if command == "CHECK":
        if previous is None:
            raise _invalid("prevResult", "missing", "CHECK compares with the result of ADD: pass it as prevResult")
        return Check(version=version, network=network, attachment=attachment, netns=netns, previous=previous)
    arguments = parse_arguments(environment.get("CNI_ARGS", ""))
    _refuse_unsupported(config)
    return Add(
        version=version,
        network=network,
        attachment=attachment,
        netns=netns,
        pod=arguments.pod,
        addresses=_wanted(arguments.addresses + _capability_ips(config)),
        pools={
            family: names
            for family, names in ((Family.IPV4, config.ipv4_pools), (Family.IPV6, config.ipv6_pools))
            if names
        },
        dns=config.dns,
        previous=previous,
        limited=_is_limited(config),
    )


def answer_version(stdin: bytes) -> str:
    """Return the version that an answer to this configuration states; the newest if it has no usable one."""
    try:
        version = _NAMED.decode(stdin).cni_version
    except UNREADABLE:
        return CURRENT
    return version if version in VERSIONS else CURRENT


def _parse_delete(environment: Mapping[str, str], stdin: bytes) -> Delete:
    require_present(environment, "CNI_CONTAINERID", "CNI_IFNAME")
    attachment = require_attachment(environment)
    config = _decode(stdin, _NAMED)
    netns = environment.get("CNI_NETNS", "")
    return Delete(version=answer_version(stdin), network=config.name, attachment=attachment, netns=netns)


def _decode(stdin: bytes, shape: msgspec.json.Decoder[T]) -> T:
    try:
        return shape.decode(stdin)
    except msgspec.ValidationError as error:
        raise CniError(
            Code.INVALID_CONFIG,
            f"network configuration: {error}",
            hint="repair the file in /etc/cni/net.d that this network is read from",
        ) from None
    except UNREADABLE as error:
        raise CniError(
            Code.DECODING_FAILURE,
            f"network configuration is not JSON: {error}",
            hint="the runtime must write one plugin's configuration to stdin, as JSON in UTF-8",
        ) from None


def _require_version(command: str, version: str) -> str:
    if version not in VERSIONS:
        stated = f"cniVersion {version!r}" if version else "a configuration without cniVersion (0.1.0)"
        raise CniError(
            Code.INCOMPATIBLE_VERSION,
            f"{stated} is not supported",
            hint=f"set cniVersion to one of {', '.join(VERSIONS)}",
        )
    if VERSIONS.index(version) < VERSIONS.index(SINCE[command]):
        raise CniError(
            Code.INCOMPATIBLE_VERSION,
            f"cniVersion {version!r} has no {command}",
            hint=f"set cniVersion to {SINCE[command]} or later",
        )
    return version


def _refuse_unknown_keys(stdin: bytes) -> None:
    for key in _decode(stdin, _KEYS):
        domain, slash, _ = key.partition("/")
        if key in _KNOWN or (slash and "." in domain):
            continue
        raise _invalid(key, "unknown field", _CLUSTER_WIDE.get(key) or _nearest(key))


def _nearest(key: str) -> str:
    known = sorted(_KNOWN)
    return did_you_mean(key, known, otherwise=f"remove it; known are {', '.join(known)}", written="{!r}")


def _refuse_unsupported(config: _Config) -> None:
    """Refuse what would change the network's promise, rather than pass it over."""
    unsupported = {
        "ipMasq": (config.ip_masq, "pods speak with their own addresses: remove it"),
        "ipam.type": (config.ipam.type, "Podway has its own address management: remove ipam"),
    }
    for name, wanted in config.capabilities.items():
        # A dotted name, such as io.kubernetes.cri.pod-annotations, tells something and asks for nothing.
        if name not in (*CAPABILITIES, *TOLD) and "." not in name:
            hint = "move it to the chained plugin that provides it; this one has " + ", ".join(CAPABILITIES)
            unsupported[f"capabilities.{name}"] = (wanted, hint)
    for key, (value, hint) in unsupported.items():
        if value:
            shown = msgspec.json.encode(value).decode()
            raise CniError(Code.UNSUPPORTED_FIELD, f"{key}: {shown} is not supported", hint=hint)


def _valid_attachments(config: _Config) -> frozenset[Attachment]:
    listed = config.valid_attachments
    if isinstance(listed, msgspec.UnsetType):
        raise _invalid(
            VALID_ATTACHMENTS,
            "missing",
            "without the list every attachment would be removed: state it, even empty",
        )
    return frozenset(Attachment(entry.container, entry.ifname) for entry in listed or ())


def _previous(config: _Config) -> Result | None:
    if bytes(config.prev_result) in (b"", b"null"):
        return None
    try:
        stated = _NAMED.decode(config.prev_result).cni_version
        if stated and stated not in VERSIONS:
            raise ValueError(f"cniVersion {stated!r} is not supported")
        return read(config.prev_result)
    except ValueError as error:
        raise _invalid("prevResult", str(error), "pass the result of the ADD as the plugin printed it") from None


def _capability_ips(config: _Config) -> tuple[Address, ...]:
    """Read the `ips` capability: addresses, with or without a prefix length (CNI conventions, "ips")."""
    raw: Any = config.runtime_config.get("ips")
    if raw is None:
        return ()
    field = "runtimeConfig.ips"
    try:
        return tuple(ip_interface(text).ip for text in msgspec.json.decode(raw, type=tuple[str, ...] | None) or ())
    except ValueError as error:
        raise _invalid(field, str(error), 'state a list such as ["10.244.1.7"]') from None


def _is_limited(config: _Config) -> bool:
    """Tell whether the `bandwidth` capability asks for a limit (CNI conventions, "bandwidth limits")."""
    raw: Any = config.runtime_config.get("bandwidth")
    if raw is None:
        return False
    try:
        return any((msgspec.json.decode(raw, type=dict[str, int | None] | None) or {}).values())
    except ValueError as error:
        raise _invalid("runtimeConfig.bandwidth", str(error), 'state numbers: {"egressRate": 8000000}') from None


def _wanted(addresses: tuple[Address, ...]) -> tuple[Address, ...]:
    by_family: dict[Family, Address] = {}
    for address in addresses:
        first = by_family.setdefault(Family.of(address), address)
        if first != address:
            raise CniError(
                Code.INVALID_CONFIG,
                f"two {Family.of(address).label} addresses are wanted, {first} and {address}",
                hint="want one a family; see runtimeConfig.ips and IP in CNI_ARGS",
            )
    return tuple(by_family.values())


def _invalid(field: str, problem: str, hint: str) -> CniError:
    return CniError(Code.INVALID_CONFIG, f"network configuration: {field}: {problem}", hint=hint)
