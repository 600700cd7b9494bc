"""nftables by libnftables.so.1 (man 3 libnftables): text in, JSON out, no process started.

It loads whole tables, for their rules are text, and lists what others have. What changes often, the elements of
sets, and what is compared often goes without it (podway.kernel.nft.sets, .forms).
"""

import contextlib
import ctypes
import errno
import functools
import json
import os
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from podway.errors import KernelError, UnsupportedSystem
from podway.kernel.netlink.constants import NETLINK_NETFILTER
from podway.plan.objects import NftElement, NftTable

_T = TypeVar("_T")

LIBRARY = "libnftables.so.1"

_OUTPUT_STATELESS = 1 << 2
_OUTPUT_JSON = 1 << 4
_OUTPUT_TERSE = 1 << 11
"""include/nftables/libnftables.h: without the values of counters; as JSON; without the elements of sets."""

_lock = threading.Lock()
"""libnftables keeps a cache of interface names for the whole process (src/iface.c)."""


class Nftables:
    """nftables in one namespace; `inside` runs a function there. Threads may share it.

    `ports` gets the netlink port ids under which its changes are told to others. Raises UnsupportedSystem if
    libnftables is missing.
    """

    def __init__(self, inside: Callable[[Callable[[], Any]], Any], ports: set[int] | None = None) -> None:
        self._library = library()
        self._inside = inside
        self._ports = set() if ports is None else ports
        with _lock:
            before = _sockets()
            # A context talks for ever to the namespace in which it was made.
            self._context: ctypes.c_void_p | None = inside(lambda: _new_context(self._library))
            self._own = _sockets() - before
        self._note_ports()
        self.writes = 0

    def close(self) -> None:
        """Free the context."""
        if self._context:
            self._library.nft_ctx_free(self._context)
            self._context = None

    def ruleset(self) -> list[dict[str, Any]]:
        """Return all tables, chains and rules; named sets come without their elements. Raises KernelError."""
        with self._flags(_OUTPUT_JSON | _OUTPUT_STATELESS | _OUTPUT_TERSE):
            return self._list("list ruleset")

    def replace(self, table: NftTable, elements: Iterable[NftElement] = ()) -> None:
        """Load a table in place of what is there of it: all of it or, if a rule is refused, nothing.

        `elements` are those of its sets: no packet meets the table without them. Raises KernelError.
        """
        self.writes += 1
        head = f"table {table.family} {table.name}"
        commands = _additions(elements)
        # The first `add` makes sure that there is something to delete.
        self._run(f"add {head}\ndelete {head}\n{head} {{\n{table.body}\n}}\n{commands}", f"load nft {head}")

    def renew(self, table: NftTable, there: Iterable[str], chains: Iterable[str], sets: Iterable[str]) -> None:
        """Load a table's rules in place of those in chains that are `there`; the elements of its sets stay.

        `chains` and `sets` are those that the table has no more. Nothing is changed if anything is refused, as
        a set of another type, or the end of a chain to which an element leads. Raises KernelError.
        """
        self.writes += 1
        head = f"table {table.family} {table.name}"
        place = " ".join(table.key)
        gone = (
            *(f"flush chain {place} {one}\n" for one in there),
            *(f"delete chain {place} {one}\n" for one in chains),
            *(f"delete set {place} {one}\n" for one in sets),
        )
        self._run(f"{''.join(gone)}{head} {{\n{table.body}\n}}\n", f"load nft {head} anew")

    def delete(self, family: str, name: str) -> None:
        """Delete a table, if it is there. Raises KernelError."""
        self.writes += 1
        head = f"table {family} {name}"
        self._run(f"add {head}\ndelete {head}\n", f"delete nft {head}")

    def _note_ports(self) -> None:
        """Note under which port id the context speaks: after an interrupted dump it opens its socket anew."""
        for descriptor in self._own:
            if port := _port(descriptor):
                self._ports.add(port)

    @contextlib.contextmanager
    def _flags(self, flags: int) -> Iterator[None]:
        self._library.nft_ctx_output_set_flags(self._context, flags)
        try:
            yield
        finally:
            self._library.nft_ctx_output_set_flags(self._context, _OUTPUT_JSON | _OUTPUT_STATELESS)

    def _list(self, command: str) -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = json.loads(self._run(command, f"nft {command}"))["nftables"]
        return entries

    def _run(self, commands: str, meaning: str) -> str:
        """Run commands as one transaction, return the output."""

        def run() -> tuple[int, str, str]:
            library, context = self._library, self._context
            code = library.nft_run_cmd_from_buffer(context, commands.encode())
            output: bytes = library.nft_ctx_get_output_buffer(context)
            error: bytes = library.nft_ctx_get_error_buffer(context)
            return code, output.decode(), error.decode()

        with _lock:
            code, output, error = self._inside(run)
        self._note_ports()
        if code:
            raise KernelError(meaning, _errno(error), " ".join(error.split()))
        return str(output)


@functools.lru_cache(maxsize=1)
def library() -> ctypes.CDLL:
    """Load libnftables. Raises UnsupportedSystem."""
    try:
        found = ctypes.CDLL(LIBRARY)
    except OSError as error:
        raise UnsupportedSystem(
            f"{LIBRARY} is missing", hint="install the package libnftables1 (Debian) or nftables"
        ) from error
    found.nft_ctx_new.restype = ctypes.c_void_p
    found.nft_ctx_new.argtypes = [ctypes.c_uint32]
    found.nft_ctx_free.argtypes = [ctypes.c_void_p]
    found.nft_ctx_output_set_flags.argtypes = [ctypes.c_void_p, ctypes.c_uint]
    for name in ("nft_ctx_buffer_output", "nft_ctx_buffer_error"):
        getattr(found, name).argtypes = [ctypes.c_void_p]
    for name in ("nft_ctx_get_output_buffer", "nft_ctx_get_error_buffer"):
        getattr(found, name).argtypes = [ctypes.c_void_p]
        getattr(found, name).restype = ctypes.c_char_p
    found.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    return found


def _new_context(found: ctypes.CDLL) -> ctypes.c_void_p:
    context: ctypes.c_void_p | None = found.nft_ctx_new(0)
    if not context:
        raise KernelError("open nftables", errno.ENOMEM)
    found.nft_ctx_output_set_flags(context, _OUTPUT_JSON | _OUTPUT_STATELESS)
    found.nft_ctx_buffer_output(context)
    found.nft_ctx_buffer_error(context)
    return context


def _sockets() -> set[int]:
    """Return the descriptors of this process's sockets that speak to nfnetlink."""
    return {int(name) for name in os.listdir("/proc/self/fd") if _port(int(name)) is not None}


def _port(descriptor: int) -> int | None:
    """Return the port id of a socket that speaks to nfnetlink (man 7 netlink), None for any other descriptor.

    It is 0 until the socket has sent something: only then the kernel gives it one.

    It is looked at as it is, never through a copy that is closed again: to close any descriptor of a file gives up
    the process's record locks on it (man 2 fcntl), and SQLite's locks on the store are such.
    """
    try:
        if not os.readlink(f"/proc/self/fd/{descriptor}").startswith("socket:"):
            return None
        sock = socket.socket(fileno=descriptor)
    except OSError:
        return None  # closed meanwhile
    try:
        if sock.family != socket.AF_NETLINK or sock.proto != NETLINK_NETFILTER:
            return None
        return int(sock.getsockname()[0])
    finally:
        sock.detach()


def _errno(message: str) -> int:
    """Find the errno again that nft only tells in words."""
    for code in (errno.ENOENT, errno.EPERM, errno.EEXIST, errno.EBUSY, errno.EOPNOTSUPP, errno.ENOBUFS):
        if os.strerror(code) in message:
            return code
    return errno.EINVAL


def _additions(elements: Iterable[NftElement]) -> str:
    """Return the commands that add elements to their sets, one for each set."""
    by_set: dict[str, list[str]] = {}
    for element in elements:
        place = f"{element.family} {element.table} {element.set}"
        by_set.setdefault(place, []).append(" . ".join(element.fields))
    return "".join(f"add element {place} {{ {', '.join(fields)} }}\n" for place, fields in by_set.items())
