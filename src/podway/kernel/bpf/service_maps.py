"""The flow engine's maps of Services, written and read (podway/bpf/flow/service.h)."""

import errno
import struct
from collections.abc import Generator, Iterable, Iterator, Mapping

from podway.errors import KernelError
from podway.kernel.bpf import libbpf as bpf
from podway.kernel.bpf.flow_layout import (
    CHOICE_KEY,
    FRONTEND,
    pack_backend,
    pack_frontend_key,
    unpack_backend,
    unpack_frontend,
    unpack_frontend_key,
)
from podway.kernel.bpf.flow_maps import FlowMaps
from podway.services.maps import Backend, Choice, Delta, Entries, Frontend, FrontendKey

PORTION = 200
"""Entries after which whoever writes may pause: less than a millisecond."""

_NUMBER = struct.Struct("=I")
_ONLY = bytes(4)


class ServiceMaps:
    """The maps, by their descriptors. Every method raises KernelError."""

    def __init__(self, maps: Mapping[str, int]) -> None:
        self._maps = maps

    def read(self) -> Generator[None, None, Entries]:
        """Return all entries; yields now and then, where a caller may pause."""
        frontends: dict[FrontendKey, Frontend] = {}
        for done, (key, value) in enumerate(bpf.items(self._maps["frontends"]).items(), 1):
            frontends[unpack_frontend_key(key)] = unpack_frontend(value)
            if not done % PORTION:
                yield
        choices: dict[Choice, int] = {}
        for done, (key, value) in enumerate(bpf.items(self._maps["choices"]).items(), 1):
            backends, place = CHOICE_KEY.unpack(key)
            choices[backends, place] = _NUMBER.unpack(value)[0]
            if not done % PORTION:
                yield
        found: dict[int, Backend] = {}
        for done, (key, value) in enumerate(bpf.items(self._maps["backends"]).items(), 1):
            found[_NUMBER.unpack(key)[0]] = unpack_backend(value)
            if not done % PORTION:
                yield
        return Entries(frontends, choices, found)

    def write(self, delta: Delta) -> Generator[None, None, None]:
        """Write changes; yields now and then, where a caller may pause.

        Nobody is led to what is not there: what is new comes from behind to the front, what goes the other way
        round. In the end connections look whether their backends are there still. Raises the first KernelError
        once the rest was tried.
        """
        failures: list[KernelError] = []
        for name, entries in self._steps(delta):
            for done, (key, value) in enumerate(entries, 1):
                try:
                    self._put(name, key, value)
                except KernelError as error:
                    failures.append(error)
                if not done % PORTION:
                    yield
        self.look_again(frontends=bool(delta.frontends))
        for failure in failures:
            raise failure

    def look_again(self, *, frontends: bool = True) -> None:
        """Have connections look for their backends; with `frontends`, and others whether they are to a Service."""
        (epoch,) = _NUMBER.unpack(bpf.element(self._maps["backends_epoch"], 0))
        bpf.insert(self._maps["backends_epoch"], _ONLY, _NUMBER.pack((epoch + 1) & 0xFFFFFFFF))
        if frontends:
            FlowMaps(self._maps).changed()

    def _steps(self, delta: Delta) -> Iterator[tuple[str, Iterable[tuple[bytes, bytes | None]]]]:
        places = ((choice, number) for choice, number in delta.choices.items() if choice[1])
        counts = ((choice, number) for choice, number in delta.choices.items() if not choice[1])
        yield "backends", ((_NUMBER.pack(one), pack_backend(where)) for one, where in delta.backends.items())
        for some in (places, counts):
            yield "choices", ((CHOICE_KEY.pack(*choice), _NUMBER.pack(number)) for choice, number in some)
        yield (
            "frontends",
            ((pack_frontend_key(one), FRONTEND.pack(*said)) for one, said in delta.frontends.items()),
        )
        yield "frontends", ((pack_frontend_key(one), None) for one in delta.gone_frontends)
        yield "choices", ((CHOICE_KEY.pack(*choice), None) for choice in delta.gone_choices)
        yield "backends", ((_NUMBER.pack(number), None) for number in delta.gone_backends)

    def _put(self, name: str, key: bytes, value: bytes | None) -> None:
        try:
            if value is None:
                bpf.delete(self._maps[name], key)
            else:
                bpf.insert(self._maps[name], key, value)
        except KernelError as error:
            if value is None and error.errno == errno.ENOENT:
                return
            if error.errno in {errno.E2BIG, errno.ENOSPC}:
                most = bpf.map_info(self._maps[name]).max_entries
                what = f"write the flow engine's map of {name}, which takes {most} entries"
                raise KernelError(what, error.errno) from error
            raise
