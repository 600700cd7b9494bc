"""Finds out whether the NIC below spoils VXLAN packets, and turns off just the offload that does.

Some NICs and drivers corrupt or drop packets whose inner checksum they are to finish, or which they are to cut
into segments behind an outer header. TCP then crawls on retransmissions. So another node's kernel is asked,
through the overlay, what it gets (podway.probe.offload). What must go is turned off on the overlay device, where
the kernel then does the work before the packet gets its outer header: the NIC and its other traffic stay as is.
"""

import asyncio
from collections.abc import Callable
from ipaddress import IPv6Address
from typing import Any

import structlog

from podway.errors import KernelError
from podway.kernel.node import Kernel
from podway.kernel.offload import ProbeSocket, Work
from podway.plan.objects import VXLAN_DEVICE, Device, NodePlan, Vxlan
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


class OffloadTest:
    """Tests the overlay device once, as soon as another node answers there."""

    def __init__(self, kernel: Kernel, plan: Callable[[], NodePlan]) -> None:
        self._kernel = kernel
        self._plan = plan
        self._tested: Vxlan | None = None
        self._turned_off: tuple[str, ...] = ()
        self._problem = ""

    def status(self) -> dict[str, Any]:
        """Return whether the test is done, what it turned off and why; plain JSON values."""
        return {
            "tested": self._tested is not None,
            "turned_off": list(self._turned_off),
            "device": VXLAN_DEVICE,
            "problem": self._problem,
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
        device = next((device for device in plan.devices if device.name == VXLAN_DEVICE), None)
        if device is None or device.vxlan is None or device.vxlan == self._tested:
            return
        if not self._kernel.has_link(device.name):
            return
        for path in _paths(plan, device)[:ENOUGH]:
            with self._kernel.probe_socket(device.name) as sock:
                spoiled = await _spoiled(sock, path)
            if spoiled is not None:
                self._conclude(device.vxlan, spoiled)
                return

    def _conclude(self, tunnel: Vxlan, spoiled: Work) -> None:
        self._tested, uplink = tunnel, tunnel.uplink
        active = self._kernel.offloads(VXLAN_DEVICE)
        match spoiled:
            case "none":
                # What is off, by us before a restart or by a person, was not tested, and stays so.
                off = CHECKSUM if not active[CHECKSUM] else SEGMENTATION[0]
                self._turned_off, why = () if active[off] else (off,), "it was off already"
            case "checksum":
                self._turned_off = (CHECKSUM,)
                why = f"{uplink} corrupts or drops packets whose inner checksum it is to finish"
            case "segmentation":
                self._turned_off = tuple(name for name in SEGMENTATION if active.get(name))
                why = f"{uplink} corrupts or drops packets that it is to cut into segments behind an outer header"
        if self._turned_off:
            self._kernel.turn_off(VXLAN_DEVICE, self._turned_off)
            self._problem = f"{', '.join(self._turned_off)} of {VXLAN_DEVICE} turned off: {why}"
            log.warning("offload turned off", problem=self._problem)


def _paths(plan: NodePlan, device: Device) -> list[Path]:
    """Return the ways through an overlay device to the other nodes."""
    return [
        Path(own.address.ip, device.mac, other.address, other.mac)
        for own in plan.addresses
        for other in plan.neighbours
        if own.device == other.device == device.name
        and isinstance(own.address.ip, IPv6Address)
        and isinstance(other.address, IPv6Address)
    ]


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
