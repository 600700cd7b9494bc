"""BIRD's sessions, and what probes tell of those that are down and of the paths to all nodes."""

import asyncio
import errno
import socket
import struct
from collections.abc import Iterable, Sequence

from podway.api.addresses import Address, Family
from podway.bgp.probe import answering, path_mtu
from podway.bgp.status import PeerStatus
from podway.errors import KernelError
from podway.health.facts import OUTSIDE, Answer, Path, Session
from podway.kernel.network import Connection, lookup_route

PING_SECONDS = 0.3
PORT_SECONDS = 0.4
MAX_PATHS = 64
"""How many nodes one node probes: those after it in name order, so that all nodes together cover all."""

MEASURED = 8
"""How many paths that large packets do not pass one node measures: more would be a burst of its own."""

TCP_QUICKACK = 12


async def paths(node: str, others: Iterable[tuple[str, Address]], size: int) -> tuple[Path, ...]:
    """Ask other nodes by echo requests as large as a pod's largest packet, and the silent ones by small ones.

    Of some that answer small ones alone it is measured what fits.

    Raises UnsupportedSystem without CAP_NET_RAW.
    """
    ordered = sorted(others, key=lambda pair: (pair[0] <= node, pair[0], pair[1].version))
    chosen = ordered[:MAX_PATHS]
    targets = {address for _, address in chosen}
    full = await answering(targets, window=PING_SECONDS, size=size)
    small = full | await answering(targets - full, window=PING_SECONDS)
    full |= await answering(small - full, window=PING_SECONDS, size=size)  # a busy node may have been late
    narrow = [address for _, address in chosen if address in small - full][:MEASURED]
    found = await asyncio.gather(
        *(path_mtu(address, largest=size - 1, window=PING_SECONDS) for address in narrow),
    )
    mtus = dict(zip(narrow, found, strict=True))
    return tuple(
        Path(name, address, size, address in small, address in full, mtus.get(address)) for name, address in chosen
    )


async def sessions(
    peers: Sequence[PeerStatus],
    own: dict[Family, Address],
    connection: Connection,
    signatures: int,
) -> tuple[Session, ...]:
    """Return the sessions; ports, addresses and ways of those that are down are tried."""
    down = [peer for peer in peers if not peer.established]
    answers, alive = await asyncio.gather(
        asyncio.gather(*(knock(peer.address, peer.port, own.get(peer.family)) for peer in down)),
        answering({peer.address for peer in down}, window=PING_SECONDS),
    )
    tried = {peer.name: answer for peer, answer in zip(down, answers, strict=True)}
    return tuple(
        Session(
            peer.name,
            peer.node or f"{OUTSIDE}{peer.peer}",
            str(peer.address),
            peer.port,
            peer.state,
            peer.since,
            peer.last_error,
            peer.bfd,
            answer=tried.get(peer.name, "unasked"),
            ping=peer.name not in tried or peer.address in alive,
            way=_no_way(connection, peer.address) if peer.name in tried else "",
            signatures=signatures,
            limit=peer.limit,
        )
        for peer in peers
    )


async def knock(address: Address, port: int, source: Address | None) -> Answer:
    """Ask whether a TCP port is open, without opening a connection: BIRD there must not take us for its peer.

    With TCP_QUICKACK off the kernel waits with the handshake's last ACK, and closing at once with SO_LINGER 0
    sends RST instead (tcp_rcv_synsent_state_process in net/ipv4/tcp_input.c; tcp(7), socket(7)).
    """
    with socket.socket(Family.of(address).af, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, TCP_QUICKACK, 0)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        try:
            if source is not None:
                sock.bind((str(source), 0))
            async with asyncio.timeout(PORT_SECONDS):
                await asyncio.get_running_loop().sock_connect(sock, (str(address), port))
        except TimeoutError:
            return "silent"
        except OSError as error:
            return "refused" if error.errno == errno.ECONNREFUSED else "unreachable"
        return "open"


def _no_way(connection: Connection, address: Address) -> str:
    """Return what a route lookup says if it leads nowhere, or empty."""
    try:
        found = lookup_route(connection, address)
    except KernelError as error:
        return error.message
    return "" if found.type == "unicast" else found.type
