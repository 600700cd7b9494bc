"""Finds out whether the NIC below spoils VXLAN packets, and turns off just the offload that does.

Some NICs and drivers corrupt or drop packets whose inner checksum they are to finish, or which they are to cut
into segments behind an outer header. TCP then crawls on retransmissions. So another node's kernel is asked,
through the overlay, what it gets (podway.probe.offload). What must go is turned off on the overlay device, where
the kernel then does the work before the packet gets its outer header: the NIC and its other traffic stay as is.
"""

import asyncio
import itertools
from collections.abc import Callable, Iterator
from ipaddress import IPv6Address
from typing import Any

import msgspec
import structlog

from podway.errors import KernelError
from podway.kernel.node import Kernel
from podway.kernel.offload import ProbeSocket, Work
from podway.plan.objects import Device, NodePlan, Vxlan
from podway.probe.offload import Path, Question, tcp_question, udp_question

log = structlog.get_logger(__name__)

CHECKSUM = "tx-checksum-ip-generic"
SEGMENTATION = (
    "tx-tcp-segmentation",
    "tx-tcp6-segmentation",
    "tx-tcp-ecn-segmentation",
    "tx-tcp-mangleid-segmentation",
    "tx-tcp-accecn-segmentation",
)
"""What `ethtool -K ... tso off` turns off."""

ANSWER = 0.3
"""Seconds to wait for an answer."""
TRIES = 3
"""Unanswered probes that are taken for spoiled, if finished ones are answered before and after."""
ENOUGH = 3
"""Nodes to ask, one after the other, until one has answered."""
RETRY = 10.0
"""Seconds until the test is tried again that nobody answered, or the plan is looked at again."""


class _Found(msgspec.Struct, frozen=True):
    """What a test of one overlay device found."""

    tunnel: Vxlan
    turned_off: tuple[str, ...]
    problem: str


class OffloadTest:
    """Tests each VXLAN device once, as soon as another node answers there."""

    def __init__(self, kernel: Kernel, plan: Callable[[], NodePlan]) -> None:
        self._kernel = kernel
        self._plan = plan
        self._found: dict[str, _Found] = {}
        """By the device's name."""

    def status(self) -> dict[str, dict[str, Any]]:
        """Return for each device that was tested what that turned off, and why; plain JSON values."""
        return {
            device: {"turned_off": list(found.turned_off), "problem": found.problem}
            for device, found in self._found.items()
        }

    async def run(self) -> None:
        """Test as soon as there is something to test, and again when the tunnel is another, for ever."""
        while True:
            try:
                await self.look()
            except KernelError as error:
                log.info("offloads not tested", reason=error.message)
            await asyncio.sleep(RETRY)

    async def look(self) -> None:
        """Test, unless there is nothing to test or that is done. Raises KernelError."""
        plan = self._plan()
        for device in plan.devices:
            found = self._found.get(device.name)
            if device.vxlan is None or (found is not None and found.tunnel == device.vxlan):
                continue
            if self._kernel.has_link(device.name):
                await self._test(plan, device, device.vxlan)

    async def _test(self, plan: NodePlan, device: Device, tunnel: Vxlan) -> None:
        # To bind and to close it takes an RCU grace period each (packet_do_bind, packet_release): up to 100 ms.
        sock = await asyncio.to_thread(self._kernel.probe_socket, device.name)
        try:
            for path in itertools.islice(_paths(plan, device), ENOUGH):
                spoiled = await _spoiled(sock, path)
                if spoiled is not None:
                    self._conclude(device.name, tunnel, spoiled)
                    return
        finally:
            await asyncio.to_thread(sock.close)

    def _conclude(self, device: str, tunnel: Vxlan, spoiled: Work) -> None:
        uplink, turned_off, problem = tunnel.uplink, tuple[str, ...](), ""
        active = self._kernel.offloads(device)
        match spoiled:
            case "none":
                # What is off, by us before a restart or by a person, was not tested, and stays so.
                off = CHECKSUM if not active[CHECKSUM] else SEGMENTATION[0]
                turned_off, why = () if active[off] else (off,), "it was off already"
            case "checksum":
                turned_off = (CHECKSUM,)
                why = f"{uplink} corrupts or drops packets whose inner checksum it is to finish"
            case "segmentation":
                turned_off = tuple(name for name in SEGMENTATION if active.get(name))
                why = f"{uplink} corrupts or drops packets that it is to cut into segments behind an outer header"
        if turned_off:
            self._kernel.turn_off(device, turned_off)
            problem = f"{', '.join(turned_off)} of {device} turned off: {why}"
            log.warning("offload turned off", problem=problem)
        self._found[device] = _Found(tunnel, turned_off, problem)


def _paths(plan: NodePlan, device: Device) -> Iterator[Path]:
    """Yield the ways through an overlay device to the other nodes, of which there may be thousands."""
    return (
        Path(own.address.ip, device.mac, other.address, other.mac)
        for own in plan.addresses
        for other in plan.neighbours
        if own.device == other.device == device.name
        and isinstance(own.address.ip, IPv6Address)
        and isinstance(other.address, IPv6Address)
    )


async def _spoiled(sock: ProbeSocket, path: Path) -> Work | None:
    """Return what work the NIC spoils, `none` if it spoils nothing; None if the other node does not answer."""
    tests: tuple[tuple[Callable[[Path, Work], Question], Work], ...] = (
        (udp_question, "checksum"),
        (tcp_question, "segmentation"),
    )
    for ask, suspect in tests:
        if not await _answered(sock, ask(path, "none")):
            return None
        for _ in range(TRIES):
            if await _answered(sock, ask(path, suspect)):
                break
        else:
            return suspect if await _answered(sock, ask(path, "none")) else None
    return "none"


async def _answered(sock: ProbeSocket, question: Question) -> bool:
    """Ask, and tell whether the answer came in time."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[bool] = loop.create_future()

    def read() -> None:
        try:
            while not answer.done() and (frame := sock.read()) is not None:
                if question.answered_by(frame):
                    answer.set_result(True)
        except KernelError as error:  # the device went
            answer.set_exception(error)

    loop.add_reader(sock, read)
    try:
        sock.send(question.probe)
        await asyncio.wait((answer,), timeout=ANSWER)
        read()  # a loop that was busy sees the time run out though the answer is there
        return answer.done() and answer.result()
    finally:
        loop.remove_reader(sock)
