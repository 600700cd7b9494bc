"""The eBPF program that tells of pods' packets that the kernel itself drops (podway/bpf/drops.c).

It hangs on a tracepoint, for as long as its DropTracer is open, and writes into the ring of a flow engine. Which
reasons there are, and their numbers, differ from kernel to kernel: they are read from the BTF of the one at hand.
"""

import contextlib
import ctypes
import os
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path

import podway
from podway.errors import KernelError, UnsupportedSystem
from podway.kernel.bpf import libbpf as bpf

_OBJECT = Path(podway.__file__).parent / "bpf/bin/drops.o"
_PROGRAM = "podway_drops"
_CONSTANTS = struct.Struct("=QII2Q4Q")
"""The constants of drops.c: `config`, of which it uses nothing, and `drops`."""
_WORDS, _BITS = 4, 64
_NEARBY = 64
"""Symbols of the kernel's after one, of which one stands at another address."""


class DropTracer:
    """Tells of dropped packets from `begin` on, until it is closed.

    It holds the maps open once more: `begin`, which takes long, may be called beside the loop, whatever becomes of
    the engine meanwhile.
    """

    def __init__(self, maps: Mapping[str, int], netns: int, wanted: Iterable[int], no_route: int) -> None:
        """Take the maps of a flow engine (descriptors, which stay the caller's).

        `netns` is the inode number of the network namespace, `wanted` are numbers of reasons, of which `no_route`
        is told of what the kernel drops in ip_error() without saying why.
        """
        self._netns, self._wanted, self._no_route = netns, frozenset(wanted), no_route
        self._maps: dict[str, int] = {}
        with contextlib.ExitStack() as stack:
            for name, fd in maps.items():
                self._maps[name] = os.dup(fd)
                stack.callback(os.close, self._maps[name])
            self._held = stack.pop_all()

    def begin(self) -> None:
        """Begin to tell. Raises KernelError, and UnsupportedSystem where the program is not built."""
        try:
            image = _OBJECT.read_bytes()
        except FileNotFoundError as error:
            raise UnsupportedSystem(
                f"the eBPF programs are not built: {_OBJECT} is missing",
                hint="install Podway anew, with clang there",
            ) from error
        words = [0] * _WORDS
        for number in self._wanted:
            if number < _WORDS * _BITS:
                words[number // _BITS] |= 1 << number % _BITS
        constants = _CONSTANTS.pack(0, self._netns, self._no_route, *place_of("ip_error"), *words)
        sizes = {name: int(bpf.map_info(fd).max_entries) for name, fd in self._maps.items()}
        with bpf.loaded("podway_drops", image, constants, self._maps, sizes) as programs:
            # The kernel knows from the program which tracepoint it is for; the descriptor is what keeps it there.
            said = bpf.library().bpf_raw_tracepoint_open(None, programs[_PROGRAM])
            self._held.callback(os.close, bpf.checked("attach an eBPF program to skb:kfree_skb", said))

    def close(self) -> None:
        """Tell no more, and let go of the maps."""
        self._held.close()


def place_of(function: str, symbols: Path = Path("/proc/kallsyms")) -> tuple[int, int]:
    """Return where a function of the kernel's begins and ends; zeros if that is not told.

    It is not where addresses are hidden (kptr_restrict), and by a kernel without the list, or the function.
    """
    try:
        told = symbols.read_bytes()
    except OSError:
        return 0, 0
    at = told.find(b" %s\n" % function.encode())
    if at < 0:
        return 0, 0
    lines = told[told.rfind(b"\n", 0, at) + 1 :].split(b"\n", _NEARBY)[:_NEARBY]
    first, *others = (int(line.split()[0], 16) for line in lines if line)  # the kernel's own stand in their order
    end = min((one for one in others if one > first), default=0)
    return (first, end) if first and end else (0, 0)


def enum_of_kernel(name: str) -> dict[str, int]:
    """Return the numbers of an enum of the kernel's by their names. Raises KernelError if it has none."""
    kind_enum = 6
    libbpf = bpf.library()
    for function in ("btf__load_vmlinux_btf", "btf__type_by_id"):
        getattr(libbpf, function).restype = ctypes.c_void_p
    libbpf.btf__name_by_offset.restype = ctypes.c_char_p
    libbpf.btf__free.restype = None
    handle = libbpf.btf__load_vmlinux_btf()
    if not handle:
        raise KernelError("read the kernel's BTF", ctypes.get_errno())
    btf = ctypes.c_void_p(handle)
    try:
        number = bpf.checked(
            f"find enum {name} in the kernel's BTF", libbpf.btf__find_by_name_kind(btf, name.encode(), kind_enum)
        )
        at = libbpf.btf__type_by_id(btf, ctypes.c_uint32(number))
        # struct btf_type, whose `info` says how many members follow, each a struct btf_enum (linux/btf.h).
        _, info, _ = struct.unpack("=III", ctypes.string_at(at, 12))
        members = struct.iter_unpack("=Ii", ctypes.string_at(at + 12, 8 * (info & 0xFFFF)))
        return {
            libbpf.btf__name_by_offset(btf, ctypes.c_uint32(offset)).decode(): value for offset, value in members
        }
    finally:
        libbpf.btf__free(btf)
