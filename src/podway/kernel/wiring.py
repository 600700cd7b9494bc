"""Both ends of a pod's veth pair, built in four batches and committed by the last.

1. The pair, its other end inside the pod's namespace from its first moment: no step renames or moves it.
2. The host end: key, place on the bridge, addresses, neighbours; then its sysctls.
3. The pod end.
4. The alias and the host routes: the lease (podway.api.lease). One `sendmsg` carries both, and a signal,
   SIGKILL too, is only heeded between system calls: a lease is there in full or not at all.

Nothing waits for IPv6: both ends make no address of their own (addr_gen_mode none), and those we give them
skip duplicate-address detection. The pod end also gets the link-local address that RFC 4291 (appendix A) makes
of its MAC, since neighbour discovery needs one.

What stands on the bridge (a port's neighbours and routes, proxies for a routed pod) does not vanish with the link:
whoever removes that calls `release` too, and what a crash leaves is in no plan, so the engine removes it.

The kernel lets a link send only after a work item of its own has seen the carrier (net/core/link_watch.c). A
request for the link makes it look at once (linkwatch_sync_dev in rtnl_getlink, kernel 6.8), so the last message
to either end is one, and the pod's first packet is not lost. For a port that is also what makes the bridge
forward (br_port_carrier_check), and a bridge's first port gives the bridge its carrier.
"""

import contextlib
import errno
import time
from collections.abc import Callable, Generator, Mapping

from podway.api.addresses import Family, link_local
from podway.errors import KernelError
from podway.kernel.netlink import Connection, Request
from podway.kernel.rtnl import addresses, bridge, links, neighbours, proxies, routes
from podway.plan.objects import LinkAddress, Neighbour, PodEnd, PodWiring, Proxy, Route

_SETTLE_SECONDS = 0.1
_SETTLE_PAUSE = 0.0002


def wire(
    host: Connection, write_sysctls: Callable[[PodWiring], None], wiring: PodWiring, pod_netns: int
) -> Generator[str, None, None]:
    """Build an attachment batch by batch, or nothing; yields `created`, `host`, `pod` and `committed`.

    What was made is removed again when a step fails, or when the generator is closed before its end.
    `write_sysctls` writes those of the wiring in the node's namespace.
    Raises KernelError; errno EEXIST if a name is taken, and the message says which.
    """
    with Connection(pod_netns) as pod:
        numbers = {device: bridge.number_of(host, device) for device in _other_devices(wiring)}
        link = _create(host, wiring, pod_netns)
        numbers[wiring.link.name] = link.index
        try:
            yield "created"
            host.transact(_host_end(wiring, numbers))
            write_sysctls(wiring)
            yield "host"
            pod.transact(_pod_end(wiring.pod, link.peer))
            yield "pod"
            host.transact(_commit(wiring, numbers))
            _settle(pod, wiring.pod)
            yield "committed"
        except BaseException:
            with contextlib.suppress(KernelError):  # the first failure is the one to tell
                host.transact([links.remove(link.index, wiring.link.name)])
                release(host, wiring)
            raise


def release(host: Connection, wiring: PodWiring) -> None:
    """Remove what stands on another device than the pod's link, as far as it is there. Raises KernelError."""
    if not wiring.away:
        return
    try:
        numbers = {device: links.find(host, device).index for device in _other_devices(wiring)}
    except KernelError as error:
        if error.errno == errno.ENODEV:
            return  # there is but one other, the bridge, and all that stood on it went with it
        raise
    failures = host.attempt([_removal(thing, numbers[thing.device]) for thing in wiring.away])
    for failure in failures.values():
        if failure.errno not in {errno.ESRCH, errno.ENOENT}:
            raise failure


def pod_addresses(pod: PodEnd) -> tuple[LinkAddress, ...]:
    """Return the addresses of a pod end, the IPv6 link-local one included."""
    if not any(Family.of(entry.address) is Family.IPV6 for entry in pod.addresses):
        return pod.addresses
    return (LinkAddress(pod.ifname, link_local(pod.mac), "link"), *pod.addresses)


def _create(host: Connection, wiring: PodWiring, pod_netns: int) -> links.LinkRecord:
    link, pod = wiring.link, wiring.pod
    peer = links.Peer(pod.ifname, pod_netns, pod.mac, pod.mtu)
    new = links.new_veth(link.name, peer, mac=link.mac, mtu=link.mtu, group=link.group)
    try:
        # The kernel numbers both ends; asking in the same batch saves a system call.
        return links.read(host.transact([new, links.get(link.name)])[0])
    except KernelError as error:
        if error.errno == errno.EEXIST:
            raise KernelError(f"create {_taken(host, wiring)}", errno.EEXIST) from error
        raise


def _taken(host: Connection, wiring: PodWiring) -> str:
    """Say which of the two names is taken: the kernel's errno is the same."""
    try:
        links.find(host, wiring.link.name)
    except KernelError:
        return f"interface {wiring.pod.ifname} in the pod's network namespace"
    return f"link {wiring.link.name} in the node's network namespace"


def _other_devices(wiring: PodWiring) -> set[str]:
    return {thing.device for thing in wiring.away}


def _removal(thing: Route | Neighbour | Proxy, index: int) -> Request:
    match thing:
        case Route():
            return routes.remove(thing, index)
        case Neighbour():
            return neighbours.remove(thing, index)
        case Proxy():
            return proxies.remove(thing, index)


def _host_end(wiring: PodWiring, numbers: Mapping[str, int]) -> list[Request]:
    name, port = wiring.link.name, wiring.port
    index = numbers[name]
    return [
        links.altname(index, wiring.link.altname, label=name),
        links.change(index, without_ipv6_autoconf=True, label=name),
        *(bridge.join(port, index, numbers[port.bridge]) if port else ()),
        links.set_up(index, name),
        *(addresses.add(address, index) for address in wiring.addresses),
        *(neighbours.add(neighbour, numbers[neighbour.device]) for neighbour in wiring.neighbours),
        *(proxies.add(proxy, numbers[proxy.device]) for proxy in wiring.proxies),
    ]


def _pod_end(pod: PodEnd, index: int) -> list[Request]:
    return [
        links.set_up(links.LOOPBACK, "lo"),
        links.change(index, without_ipv6_autoconf=True, label=pod.ifname),
        links.set_up(index, pod.ifname),
        *(addresses.add(address, index) for address in pod_addresses(pod)),
        *(neighbours.add(neighbour, index) for neighbour in pod.neighbours),
        *(routes.add(route, index) for route in pod.routes),
        links.get(index),
    ]


def _commit(wiring: PodWiring, numbers: Mapping[str, int]) -> list[Request]:
    index = numbers[wiring.link.name]
    return [
        links.change(index, alias=wiring.link.alias, label=wiring.link.name),
        *(routes.add(route, numbers[route.device]) for route in wiring.routes),
        links.get(index),
        *(links.get(number) for number in numbers.values() if number != index),
    ]


def _settle(pod: Connection, end: PodEnd) -> None:
    """Wait, mostly for nothing at all, until the pod's IPv6 addresses receive.

    Without duplicate-address detection an address can send at once, but the kernel adds the local route that
    lets it receive in a work item of its own (addrconf_dad_work in net/ipv6/addrconf.c).
    """
    deadline = time.monotonic() + _SETTLE_SECONDS
    for entry in end.addresses:
        while not routes.is_local(pod, entry.address.ip) and time.monotonic() < deadline:
            time.sleep(_SETTLE_PAUSE)
