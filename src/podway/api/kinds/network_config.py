"""NetworkConfig: the settings of the whole cluster."""

from collections.abc import Iterator, Sequence
from ipaddress import ip_network
from typing import ClassVar, Literal, TypeAlias

from podway.api.addresses import Network, is_within
from podway.api.cel import ASN
from podway.api.columns import AGE, NAME, Cluster, Column
from podway.api.fields import BGP_PORT, Problem, check_asn, check_limits, check_selector, parse_address, parse_cidr
from podway.api.kinds.cluster_authority import AUTHORITY_LIVES
from podway.api.meta import LabelSelector, Rule, StrictRecord
from podway.api.resource import Names, Resource
from podway.api.status import JudgedStatus, accepted

DEFAULT_ASN = 64512

MIN_MTU = 576
"""What every IPv4 host must accept (RFC 791)."""
MAX_MTU = 65535
MAX_LIFETIME = 10 * 365 * 24 * 3600
"""Seconds that a certificate may be valid."""
MAX_REFLECTORS = 64
MAX_VNI = (1 << 24) - 1
"""A VXLAN network identifier has 24 bits (RFC 7348, section 5)."""

BFD_PORTS = {3784: "RFC 5881", 3785: "RFC 5881", 4784: "RFC 5883"}
"""UDP ports at which nodes' BFD listens."""

Topology: TypeAlias = Literal["auto", "mesh", "reflectors", "none"]
"""Which nodes have BGP sessions with each other."""

DataPath: TypeAlias = Literal["auto", "ebpf", "kernel"]
"""What judges and carries pods' packets: the flow engine (docs/datapath.md), or the kernel's own forwarding."""

ServiceClients: TypeAlias = Literal["off", "pods", "all"]
"""For whom Podway serves Services: for nobody, for pods, or for nodes' own processes and clients outside, too."""

PRIMARY = "primary"
"""What stands for the addresses of nodes' uplinks, among networks of addresses for node ports."""


class ReflectorSettings(StrictRecord, frozen=True, kw_only=True):
    """Which nodes reflect routes (RFC 4456): all that the selector matches, else `count` chosen by Podway."""

    node_selector: LabelSelector | None = None
    count: int = 3


class BgpSettings(StrictRecord, frozen=True, kw_only=True):
    """How nodes speak BGP with each other; BFD times in milliseconds.

    With topology `auto` nodes form a full mesh while there are at most `mesh_limit`, and speak with reflectors
    when there are more. With `none` they speak with outside peers only.
    """

    asn: int = DEFAULT_ASN
    port: int = BGP_PORT
    topology: Topology = "auto"
    mesh_limit: int = 50
    reflectors: ReflectorSettings = ReflectorSettings()
    bfd: bool = True
    bfd_interval: int = 200
    bfd_multiplier: int = 2


class ChannelSettings(StrictRecord, frozen=True, kw_only=True):
    """How agents are reached from other machines.

    `port` is TCP. A certificate is renewed at two thirds of its life, an authority replaced likewise.
    """

    port: int = 9179
    certificate_lifetime_seconds: int = 24 * 3600
    authority_lifetime_seconds: int = 365 * 24 * 3600


class VxlanSettings(StrictRecord, frozen=True, kw_only=True):
    """The VXLAN network of the cluster: its VXLAN network identifier and UDP port."""

    vni: int = 4096
    port: int = 4789


class NatSettings(StrictRecord, frozen=True, kw_only=True):
    """What of the translation of outgoing packets (`natOutgoing` of pools) is the same in the whole cluster.

    `excluded` are networks outside that know the way to pods: what pods send there keeps its source.
    """

    excluded: tuple[str, ...] = ()


class NetworkConfigSpec(StrictRecord, frozen=True, kw_only=True):
    """Settings of the whole cluster. `mtu` 0 means: what the path of pod packets allows.

    `service_cidrs` are the ranges of Services' addresses, which are no pod's and not outside either.
    With data path `ebpf` policies are enforced; with `kernel` nothing enforces them. `auto` is `ebpf` on nodes
    whose kernel can. With `services: pods` the flow engine serves Services to pods, with `all` nodes' processes
    and clients outside are served, too (docs/services.md); where there is none, another proxy has to. Node
    ports are served at those of a node's addresses that are within `node_port_addresses`; without any, or with
    `primary`, at its uplink's. `dns_servers` are addresses whose answers policies with names of domains believe,
    beside the cluster's own DNS.
    """

    bgp: BgpSettings = BgpSettings()
    channel: ChannelSettings = ChannelSettings()
    vxlan: VxlanSettings = VxlanSettings()
    mtu: int = 0
    nat: NatSettings = NatSettings()
    service_cidrs: tuple[str, ...] = ()
    data_path: DataPath = "kernel"
    services: ServiceClients = "off"
    node_port_addresses: tuple[str, ...] = ()
    dns_servers: tuple[str, ...] = ()

    @property
    def node_port_networks(self) -> tuple[Network, ...]:
        """The networks in which a node's addresses serve node ports; none: where its uplink's do."""
        return tuple(ip_network(text) for text in self.node_port_addresses if text != PRIMARY)

    @property
    def service_networks(self) -> tuple[Network, ...]:
        """The ranges of Services' addresses."""
        return tuple(map(ip_network, self.service_cidrs))


def _bfd(config: "NetworkConfig", _: Cluster) -> str:
    bgp = config.spec.bgp
    return f"{bgp.bfd_interval}ms x {bgp.bfd_multiplier}" if bgp.bfd else "off"


class NetworkConfig(Resource, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The cluster's settings; there is one object, named `default`."""

    KIND: ClassVar = "NetworkConfig"
    NAMESPACED: ClassVar = False
    NAMES: ClassVar = Names("networkconfigs", usual=("config", "configs"))
    COLUMNS: ClassVar = (
        NAME,
        Column("ASN", lambda config, _: str(config.spec.bgp.asn), path=".spec.bgp.asn", type="integer"),
        Column("BFD", _bfd),
        Column(
            "MTU",
            lambda config, _: str(config.spec.mtu) if config.spec.mtu else "auto",
            path=".spec.mtu",
            type="integer",
        ),
        Column("DATAPATH", lambda config, _: config.spec.data_path, wide=True, path=".spec.dataPath"),
        AGE,
        Column(
            "ACCEPTED",
            lambda config, _: accepted(config.status),
            wide=True,
            path=".status.conditions[?(@.type=='Accepted')].status",
        ),
    )
    ONLY: ClassVar = "default"
    IN_VIEW: ClassVar = True
    JUDGED: ClassVar = True
    LIMITS: ClassVar = {
        "spec.bgp.port": (1, 65535),
        "spec.bgp.meshLimit": (1, 1000),
        "spec.bgp.reflectors.count": (1, MAX_REFLECTORS),
        "spec.bgp.bfdInterval": (10, 60_000),
        "spec.bgp.bfdMultiplier": (1, 255),
        "spec.vxlan.vni": (1, MAX_VNI),
        "spec.vxlan.port": (1, 65535),
        "spec.channel.port": (1, 65535),
        "spec.channel.certificateLifetimeSeconds": (1, MAX_LIFETIME),
        "spec.channel.authorityLifetimeSeconds": (1, MAX_LIFETIME),
    }
    SCHEMA: ClassVar = {"spec.bgp.asn": {"minimum": 0, "maximum": 4294967295}}
    RULES: ClassVar = (
        Rule("spec.bgp.asn", *ASN),
        Rule(
            "spec.mtu",
            f"self == 0 || {MIN_MTU} <= self && self <= {MAX_MTU}",
            f"write 0 (what the path allows), or {MIN_MTU} to {MAX_MTU}",
        ),
        Rule("spec.vxlan.port", f"!(self in {sorted(BFD_PORTS)})", "is BFD's UDP port: use another, such as 4789"),
        Rule(
            "spec.channel",
            "(has(self.authorityLifetimeSeconds) ? self.authorityLifetimeSeconds : "
            f"{ChannelSettings().authority_lifetime_seconds}) >= {AUTHORITY_LIVES} * "
            "(has(self.certificateLifetimeSeconds) ? self.certificateLifetimeSeconds : "
            f"{ChannelSettings().certificate_lifetime_seconds})",
            f"authorityLifetimeSeconds is at least {AUTHORITY_LIVES} times certificateLifetimeSeconds: "
            "old and new must overlap",
        ),
    )

    api_version: Literal["podway.io/v1"] = "podway.io/v1"
    kind: Literal["NetworkConfig"] = "NetworkConfig"
    spec: NetworkConfigSpec = NetworkConfigSpec()
    status: JudgedStatus = JudgedStatus()

    def problems(self) -> Iterator[Problem]:
        """Yield what cannot be right in the settings."""
        yield from check_limits(self)
        yield from _bgp(self.spec.bgp)
        yield from _vxlan(self.spec.vxlan)
        yield from _channel(self.spec.channel)
        yield from _apart("spec.nat.excluded", self.spec.nat.excluded, "write a network such as 192.0.2.0/24")
        yield from _apart("spec.serviceCidrs", self.spec.service_cidrs, "write a network such as 10.96.0.0/12")
        yield from _node_ports(self.spec.node_port_addresses)
        for index, text in enumerate(self.spec.dns_servers):
            try:
                parse_address(text)
            except ValueError:
                hint = "write the address of a DNS server, such as 10.96.0.10"
                yield f"spec.dnsServers[{index}]", f"{text!r} is no address", hint
        mtu = self.spec.mtu
        if mtu != 0 and not MIN_MTU <= mtu <= MAX_MTU:
            hint = f"write 0 (what the path allows), or {MIN_MTU} to {MAX_MTU}"
            yield "spec.mtu", f"{mtu} is out of range", hint


def _node_ports(texts: Sequence[str]) -> Iterator[Problem]:
    hint = "write networks such as 192.0.2.0/24, or primary for the addresses of nodes' uplinks"
    for index, text in enumerate(texts):
        where = f"spec.nodePortAddresses[{index}]"
        if text == PRIMARY:
            if len(texts) > 1:
                yield where, "primary stands by itself", "leave out the others, or name networks only"
            continue
        try:
            parse_cidr(text)
        except ValueError as error:
            yield where, str(error), hint


def _bgp(bgp: BgpSettings) -> Iterator[Problem]:
    yield from check_asn("spec.bgp.asn", bgp.asn)
    yield from check_selector("spec.bgp.reflectors.nodeSelector", bgp.reflectors.node_selector)


def _vxlan(vxlan: VxlanSettings) -> Iterator[Problem]:
    if rfc := BFD_PORTS.get(vxlan.port):
        yield "spec.vxlan.port", f"UDP port {vxlan.port} is BFD's ({rfc})", "use another, such as 4789"


def _apart(field: str, texts: Sequence[str], hint: str) -> Iterator[Problem]:
    """Yield what is wrong with networks that must not overlap, and each of which must leave something outside."""
    seen: dict[Network, int] = {}
    for index, text in enumerate(texts):
        where = f"{field}[{index}]"
        try:
            network = parse_cidr(text)
        except ValueError as error:
            yield where, str(error), hint
            continue
        if network.prefixlen == 0:
            yield where, f"{network} is everything", "to translate nothing, set natOutgoing: false in the IPPools"
        for other, place in seen.items():
            if network.version == other.version and network.overlaps(other):
                inner = index if is_within(network, other) else place
                yield where, f"{network} overlaps {other} of {field}[{place}]", f"remove {field}[{inner}]"
        seen.setdefault(network, index)


def _channel(channel: ChannelSettings) -> Iterator[Problem]:
    least = AUTHORITY_LIVES * channel.certificate_lifetime_seconds
    if channel.authority_lifetime_seconds < least:
        hint = (
            f"write {least} or more, {AUTHORITY_LIVES} times certificateLifetimeSeconds: old and new must overlap"
        )
        yield "spec.channel.authorityLifetimeSeconds", f"{channel.authority_lifetime_seconds} is too short", hint
