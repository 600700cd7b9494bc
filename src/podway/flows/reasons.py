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
}


def name_of(number: int) -> str:
    """Return the name of a reason, its number if it is one of a newer engine."""
    try:
        return "" if number == Reason.KEPT else Reason(number).name
    except ValueError:
        return f"REASON_{number}"


def words_of(name: str) -> str:
    """Return what a reason means, by its name; the name itself if it is not known here."""
    try:
        return _WORDS.get(Reason[name], name)
    except KeyError:
        return name


def names() -> tuple[str, ...]:
    """Return the names of all reasons."""
    return tuple(reason.name for reason in Reason if reason is not Reason.KEPT)
