"""Why packets are dropped, in words: the one list, which docs/datapath.md explains. Pure."""

from podway.kernel.flow_events import Reason

DENIALS = frozenset({Reason.DENIED_EGRESS, Reason.DENIED_INGRESS})
"""Reasons that are a policy's word; all others are the engine's own."""

_WORDS: dict[Reason, str] = {
    Reason.KEPT: "",
    Reason.MALFORMED: "not a sound packet",
    Reason.EXTENSION_HEADERS: "too many IPv6 extension headers, or a routing header",
    Reason.NOT_OWN_SOURCE: "sent from an address that is not the pod's",
    Reason.POD_SOURCE_FROM_WIRE: "from another machine in the name of a pod of this node",
    Reason.LINK_MESSAGE: "a neighbour's message that must not leave the link",
    Reason.ICMP_ERROR_FORGED: "an ICMP error about what the pod was never sent",
    Reason.ICMP_ERROR_UNRELATED: "an ICMP error about no known flow",
    Reason.REPLY_WITHOUT_REQUEST: "an answer to nothing",
    Reason.FRAGMENT_WITHOUT_FIRST: "a fragment without its first one",
    Reason.DENIED_EGRESS: "denied by an egress rule",
    Reason.DENIED_INGRESS: "denied by an ingress rule",
    Reason.POLICY_NOT_WRITTEN: "the pod's policies are not in force yet",
    Reason.QUOTA_HALF_OPEN: "the pod has too many half-open flows",
    Reason.QUOTA_ESTABLISHED: "the pod has too many open connections",
    Reason.TABLE_FULL: "a table of the engine is full",
    Reason.SERVICE_NO_ENDPOINT: "nobody is behind the Service's port",
    Reason.SERVICE_NO_PORT: "the Service has no such port",
    Reason.SERVICE_PORTS_TAKEN: "all backends that were tried have a connection from that port already",
    Reason.DROPPED_BY_KERNEL: "the kernel dropped it, and it is not known why",
}

KERNEL = "KERNEL_"
"""How reasons begin that are the kernel's own: its names (enum skb_drop_reason) follow."""

NO_ROUTE = "IP_INNOROUTES"
"""What the kernel's lack of a route is called, also where it drops the packet without saying why."""

KERNEL_DROPS: dict[str, str] = {
    "NETFILTER_DROP": "a firewall rule of the node drops it (nftables, iptables)",
    "IP_RPFILTER": "its source is not routed to the device that it came by (rp_filter)",
    "IP_INNOROUTES": "the node has no route to it",
    "IP_OUTNOROUTES": "the node has no route to it",
    "IP_INADDRERRORS": "the node does not forward what comes by that device",
    "IP_LOCAL_SOURCE": "its source is an address of the node itself",
    "IP_INVALID_SOURCE": "its source is no address that one may send from",
    "IP_INVALID_DEST": "its destination is no address that one may send to",
    "IP_LOCALNET": "to or from 127.0.0.0/8, by a device",
    "IP_INHDR": "a bad IP header, or its time to live is over",
    "IP_CSUM": "the check sum of its IP header is wrong",
    "IPV6DISABLED": "IPv6 is switched off on the device",
    "IPV6_BAD_EXTHDR": "a bad IPv6 extension header",
    "OTHERHOST": "its frame was for another hardware address",
    "UNICAST_IN_L2_MULTICAST": "sent to one address in a frame for many",
    "NEIGH_FAILED": "its next hop does not answer ARP or neighbour discovery",
    "NEIGH_CREATEFAIL": "no room in the table of neighbours",
    "NEIGH_QUEUEFULL": "too many packets wait for its next hop to answer",
    "NEIGH_DEAD": "the entry of its next hop was removed",
    "NEIGH_HH_FILLFAIL": "no link-layer header could be made for its next hop",
    "PKT_TOO_BIG": "larger than the MTU, and must not be fragmented",
    "PKT_TOO_SMALL": "shorter than its headers",
    "HDR_TRUNC": "shorter than its headers",
    "QDISC_DROP": "the device's queueing discipline dropped it",
    "QDISC_OVERLIMIT": "the device's queue is full",
    "QDISC_CONGESTED": "the device's queueing discipline dropped it for congestion",
    "CPU_BACKLOG": "the processor's queue of received packets is full (netdev_max_backlog)",
    "FULL_RING": "the device's ring is full",
    "DEV_READY": "the device is down",
    "DEV_HDR": "no header for the device could be made",
    "NOMEM": "no memory",
    "PFMEMALLOC": "memory is kept for others",
    "XFRM_POLICY": "an IPsec policy forbids it",
    "SECURITY_HOOK": "a security module forbids it",
    "BPF_CGROUP_EGRESS": "an eBPF program of a control group drops it",
    "XDP": "an XDP program drops it",
    "FRAG_REASM_TIMEOUT": "not all its fragments came in time",
    "FRAG_TOO_FAR": "its fragments came too far apart",
    "DUP_FRAG": "a fragment that overlaps another",
    "SKB_CSUM": "its check sum could not be computed",
    "SKB_GSO_SEG": "it could not be cut into segments",
    "TUNNEL_TXINFO": "its tunnel lacks what it needs to send",
    "VXLAN_INVALID_HDR": "a bad VXLAN header",
    "VXLAN_VNI_NOT_FOUND": "nobody has its VXLAN network",
    "MAC_INVALID_SOURCE": "its frame comes from a hardware address that is none",
    "IP_TUNNEL_ECN": "a tunnel's congestion mark that cannot be handed on",
    "NO_TX_TARGET": "its tunnel has nobody to send it to",
    "LOCAL_MAC": "its frame comes from the device's own hardware address",
    "RECURSION_LIMIT": "it went through tunnels again and again",
}
"""The kernel's reasons that are told, and what they mean. Left out are those of sockets, which are the ends' own,
of tc, where the engine drops and tells better, and of what is dropped in the usual course of things."""


def name_of(number: int) -> str:
    """Return the name of a reason, its number if it is one of a newer engine."""
    try:
        return "" if number == Reason.KEPT else Reason(number).name
    except ValueError:
        return f"REASON_{number}"


def words_of(name: str) -> str:
    """Return what a reason means, by its name; the name itself if it is not known here."""
    if name.startswith(KERNEL):
        return KERNEL_DROPS.get(name.removeprefix(KERNEL), name)
    try:
        return _WORDS.get(Reason[name], name)
    except KeyError:
        return name


def names() -> tuple[str, ...]:
    """Return the names of all reasons."""
    own = tuple(reason.name for reason in Reason if reason is not Reason.KEPT)
    return own + tuple(f"{KERNEL}{name}" for name in KERNEL_DROPS)
