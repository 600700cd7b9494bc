"""Offloads: which work on packets a device takes over from the kernel, and packets that show whether it can.

A device's features are those of `ethtool -k`, by the names that this shows (SIOCETHTOOL,
include/uapi/linux/ethtool.h). Probes are frames that leave the same work undone that the kernel's own
packets do: PACKET_VNET_HDR (man 7 packet) lets the sender say which.
"""

import contextlib
import ctypes
import errno
import fcntl
import socket
import struct
from collections.abc import Iterator, Mapping
from typing import Literal, Self, TypeAlias

import msgspec

from podway.errors import KernelError
from podway.kernel import netns

_SIOCETHTOOL = 0x8946
_GSTRINGS, _GSSET_INFO, _GFEATURES, _SFEATURES = 0x1B, 0x37, 0x3A, 0x3B
_FEATURE_NAMES = 4
"""ETH_SS_FEATURES."""
_NAME_BYTES = 32
"""ETH_GSTRING_LEN."""
_HEADER = struct.Struct("=II")
_GET_BLOCK = struct.Struct("=IIII")
"""available, requested, active, never_changed: 32 features each"""
_SET_BLOCK = struct.Struct("=II")
"""valid, requested"""
_IFREQ = struct.Struct("16sP16x")
"""struct ifreq: the device's name, and a pointer in its union"""

_SOL_PACKET, _PACKET_VNET_HDR = 263, 15
_ETH_P_IPV6 = 0x86DD
_VNET_HEADER = struct.Struct("=BBHHHH")
"""struct virtio_net_hdr: flags, gso_type, hdr_len, gso_size, csum_start, csum_offset"""
_NEEDS_CSUM = 1
_GSO_NONE, _GSO_TCPV6 = 0, 4

Work: TypeAlias = Literal["none", "checksum", "segmentation"]
"""What is left to the device: nothing, the transport's checksum, or to cut the packet into segments as well."""


class Probe(msgspec.Struct, frozen=True):
    """An Ethernet frame with IPv6 and a transport whose header and checksum are at these offsets.

    Unless `work` is `none` the checksum must be the sum of the pseudo header alone. `segmentation` is of TCP:
    the payload, which begins at `payload`, is cut into pieces of `segment` bytes.
    """

    frame: bytes
    work: Work
    transport: int
    checksum: int
    payload: int
    segment: int = 0


def features(device: str, netns_fd: int | None = None) -> dict[str, bool]:
    """Return the features of a device by name, and whether each is on. Raises KernelError."""

    def ask() -> dict[str, bool]:
        names = _names(device)
        blocks = (len(names) + 31) // 32
        buffer = _ethtool(device, _HEADER.pack(_GFEATURES, blocks), _GET_BLOCK.size * blocks)
        active = [_GET_BLOCK.unpack_from(buffer, _HEADER.size + _GET_BLOCK.size * i)[2] for i in range(blocks)]
        return {name: bool(active[i // 32] >> i % 32 & 1) for i, name in enumerate(names) if name}

    return ask() if netns_fd is None else netns.run(netns_fd, ask)


def set_features(device: str, wanted: Mapping[str, bool], netns_fd: int | None = None) -> None:
    """Turn features of a device on or off; those that it does not have are passed over. Raises KernelError."""

    def write() -> None:
        names = _names(device)
        blocks = [[0, 0] for _ in range((len(names) + 31) // 32)]
        for i, name in enumerate(names):
            if name in wanted:
                blocks[i // 32][0] |= 1 << i % 32
                blocks[i // 32][1] |= wanted[name] << i % 32
        body = b"".join(_SET_BLOCK.pack(*block) for block in blocks)
        _ethtool(device, _HEADER.pack(_SFEATURES, len(blocks)) + body)

    if netns_fd is None:
        write()
    else:
        netns.run(netns_fd, write)


class ProbeSocket:
    """Sends probes out of one Ethernet device, and hears the IPv6 packets that it brings.

    `netns_fd` is the device's namespace, None the calling thread's. Raises KernelError.
    """

    def __init__(self, device: str, netns_fd: int | None = None) -> None:
        self._device = device

        def create() -> socket.socket:
            return socket.socket(
                socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.htons(_ETH_P_IPV6)
            )

        with self._told("open a packet socket"):
            self._socket = create() if netns_fd is None else netns.run(netns_fd, create)
            try:
                self._socket.setblocking(False)
                self._socket.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
                self._socket.bind((device, _ETH_P_IPV6))
            except OSError:
                self._socket.close()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close it, which takes as long as an RCU grace period."""
        self._socket.close()

    def fileno(self) -> int:
        """Return a descriptor to wait on."""
        return self._socket.fileno()

    def send(self, probe: Probe) -> None:
        """Send a probe. Raises KernelError."""
        header = (0, _GSO_NONE, 0, 0, 0, 0)
        if probe.work != "none":
            cut = probe.work == "segmentation"
            kind = (_GSO_TCPV6, probe.payload, probe.segment) if cut else (_GSO_NONE, 0, 0)
            header = (_NEEDS_CSUM, *kind, probe.transport, probe.checksum - probe.transport)
        with self._told("send a probe"):
            self._socket.send(_VNET_HEADER.pack(*header) + probe.frame)

    def read(self) -> bytes | None:
        """Return the next frame that came in, None if none is there. Raises KernelError."""
        with self._told("read an answer"):
            while True:
                try:
                    data, sender = self._socket.recvfrom(1 << 16)
                except BlockingIOError:
                    return None
                if sender[2] != socket.PACKET_OUTGOING:
                    return data[_VNET_HEADER.size :]

    @contextlib.contextmanager
    def _told(self, doing: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise KernelError(f"{doing} on {self._device}", error.errno or errno.EIO) from error


def _names(device: str) -> list[str]:
    """Return the names of features in the order of their bits; some are empty."""
    # A struct ethtool_sset_info: command, reserved, mask; then the count.
    info = _ethtool(device, struct.pack("=IIQ", _GSSET_INFO, 0, 1 << _FEATURE_NAMES), 4)
    count: int = struct.unpack_from("=I", info, 16)[0]
    strings = _ethtool(device, struct.pack("=III", _GSTRINGS, _FEATURE_NAMES, count), _NAME_BYTES * count)
    data = strings[12:]
    return [
        data[start : start + _NAME_BYTES].split(b"\0")[0].decode()
        for start in range(0, _NAME_BYTES * count, _NAME_BYTES)
    ]


def _ethtool(device: str, command: bytes, room: int = 0) -> bytes:
    """Carry out one command of SIOCETHTOOL; return it with what the kernel wrote into it and behind it."""
    buffer = ctypes.create_string_buffer(command + bytes(room), len(command) + room)
    request = _IFREQ.pack(device.encode(), ctypes.addressof(buffer))
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            fcntl.ioctl(sock, _SIOCETHTOOL, request)
    except OSError as error:
        raise KernelError(f"ask for the offloads of {device}", error.errno or errno.EIO) from error
    return buffer.raw
