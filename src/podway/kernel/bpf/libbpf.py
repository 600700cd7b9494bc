"""eBPF programs and maps, by libbpf (man 2 bpf; https://libbpf.readthedocs.io).

Nothing is pinned: a program lives as long as something it is attached to, and a map as long as a program that
uses it. Programs and maps have numbers (ids) for the whole machine, whatever the network namespace.
"""

import contextlib
import ctypes
import errno
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from podway.errors import KernelError, UnsupportedSystem

_ANY, _NOEXIST = 0, 1
"""BPF_ANY and BPF_NOEXIST (linux/bpf.h)."""
ARRAY = 2
"""BPF_MAP_TYPE_ARRAY (linux/bpf.h)."""
_ENOTSUPP = 524
"""What kernels say of batches that a kind of map cannot do (include/linux/errno.h); no errno of programs."""
_LOG_BYTES = 1 << 16
_LOG_LINES = 8
"""How much of what the verifier says is shown: its reason stands at the end."""


class _OpenOptions(ctypes.Structure):
    """The beginning of struct bpf_object_open_opts (bpf/libbpf.h)."""

    _fields_ = (("size", ctypes.c_size_t), ("object_name", ctypes.c_char_p))


class _ProgramInfo(ctypes.Structure):
    """The beginning of struct bpf_prog_info (linux/bpf.h)."""

    _fields_ = (
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("tag", ctypes.c_uint8 * 8),
        ("jited_length", ctypes.c_uint32),
        ("translated_length", ctypes.c_uint32),
        ("jited", ctypes.c_uint64),
        ("translated", ctypes.c_uint64),
        ("load_time", ctypes.c_uint64),
        ("created_by_uid", ctypes.c_uint32),
        ("nr_map_ids", ctypes.c_uint32),
        ("map_ids", ctypes.c_uint64),
        ("name", ctypes.c_char * 16),
    )


class MapInfo(ctypes.Structure):
    """The beginning of struct bpf_map_info (linux/bpf.h)."""

    _fields_ = (
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("key_size", ctypes.c_uint32),
        ("value_size", ctypes.c_uint32),
        ("max_entries", ctypes.c_uint32),
        ("map_flags", ctypes.c_uint32),
        ("name", ctypes.c_char * 16),
    )


class Program(NamedTuple):
    """A program in the kernel: its descriptor, its name, and descriptors of the maps that it uses by name."""

    fd: int
    name: str
    maps: Mapping[str, int]


@functools.cache
def library() -> Any:
    """Return libbpf. Raises UnsupportedSystem if it is not installed."""
    try:
        libbpf = ctypes.CDLL("libbpf.so.1", use_errno=True)
    except OSError as error:
        raise UnsupportedSystem(f"libbpf cannot be used: {error}", hint="install libbpf1 (Debian)") from error
    for name in ("bpf_object__open_mem", "bpf_object__next_map", "bpf_object__next_program"):
        getattr(libbpf, name).restype = ctypes.c_void_p
    for name in ("bpf_map__name", "bpf_program__name"):
        getattr(libbpf, name).restype = ctypes.c_char_p
    libbpf.libbpf_set_print(None)  # it would write to our standard error; what matters is in our exceptions
    return libbpf


def is_installed() -> bool:
    """Tell whether there is a libbpf."""
    try:
        library()
    except UnsupportedSystem:
        return False
    return True


def checked(request: str, result: int, hint: str = "") -> int:
    """Return what a function of libbpf returned. Raises KernelError if that is an error's negative number."""
    if result < 0:
        raise KernelError(request, -result, hint=hint)
    return result


@contextlib.contextmanager
def loaded(
    name: str, image: bytes, constants: bytes, share: Mapping[str, int], sizes: Mapping[str, int] | None = None
) -> Iterator[Mapping[str, int]]:
    """Load an object file's programs; give their descriptors by name, which are closed after the block.

    `constants` becomes the object's `.rodata`. `sizes` are how many entries maps have, by name, where the object
    does not say it well. `share` are descriptors of maps by name: a map of the object that has such a name, and
    the same type and sizes, is that one; the others are new.
    Raises KernelError, with the end of the verifier's log, and UnsupportedSystem if there is no libbpf.
    """
    libbpf = library()
    options = _OpenOptions(ctypes.sizeof(_OpenOptions), name.encode())
    handle = libbpf.bpf_object__open_mem(image, ctypes.c_size_t(len(image)), ctypes.byref(options))
    if not handle:
        raise KernelError(f"read the eBPF object {name}", ctypes.get_errno() or errno.EINVAL)
    bpf_object = ctypes.c_void_p(handle)
    try:
        _prepare_maps(bpf_object, name, constants, share, sizes or {})
        log = ctypes.create_string_buffer(_LOG_BYTES)
        programs = list(_walk(libbpf.bpf_object__next_program, bpf_object))
        for program in programs:
            libbpf.bpf_program__set_log_buf(program, log, ctypes.c_size_t(_LOG_BYTES))
        said = libbpf.bpf_object__load(bpf_object)
        lines = log.value.decode(errors="replace").splitlines()[-_LOG_LINES:]
        checked(f"load the eBPF object {name}", said, hint="\n".join(["the kernel's verifier says:", *lines]))
        yield {libbpf.bpf_program__name(program).decode(): libbpf.bpf_program__fd(program) for program in programs}
    finally:
        libbpf.bpf_object__close(bpf_object)


def _prepare_maps(
    bpf_object: ctypes.c_void_p, name: str, constants: bytes, share: Mapping[str, int], sizes: Mapping[str, int]
) -> None:
    libbpf = library()
    for bpf_map in _walk(libbpf.bpf_object__next_map, bpf_object):
        map_name = libbpf.bpf_map__name(bpf_map).decode()
        if map_name in sizes:
            said = libbpf.bpf_map__set_max_entries(bpf_map, ctypes.c_uint32(sizes[map_name]))
            checked(f"set the size of the eBPF map {map_name}", said)
        if map_name.endswith(".rodata"):
            said = libbpf.bpf_map__set_initial_value(bpf_map, constants, ctypes.c_size_t(len(constants)))
            checked(f"set the constants of the eBPF object {name}", said)
        elif map_name in share and _shape(map_info(share[map_name])) == (
            libbpf.bpf_map__type(bpf_map),
            libbpf.bpf_map__key_size(bpf_map),
            libbpf.bpf_map__value_size(bpf_map),
            libbpf.bpf_map__max_entries(bpf_map),
        ):
            checked(f"share the eBPF map {map_name}", libbpf.bpf_map__reuse_fd(bpf_map, share[map_name]))


def _shape(info: MapInfo) -> tuple[int, int, int, int]:
    return (info.type, info.key_size, info.value_size, info.max_entries)


def _walk(following: Callable[..., int | None], bpf_object: ctypes.c_void_p) -> Iterator[ctypes.c_void_p]:
    at = None
    while at := following(bpf_object, ctypes.c_void_p(at)):
        yield ctypes.c_void_p(at)


@contextlib.contextmanager
def opened(program: int) -> Iterator[Program]:
    """Give the program of this id, and its maps; the descriptors are closed after the block.

    Raises KernelError, with errno ENOENT if there is no such program.
    """
    libbpf = library()
    with contextlib.ExitStack() as open_files:

        def kept(request: str, result: int) -> int:
            open_files.callback(os.close, checked(request, result))
            return result

        fd = kept(f"open eBPF program {program}", libbpf.bpf_prog_get_fd_by_id(program))
        ids = (ctypes.c_uint32 * 64)()
        info = _ProgramInfo(nr_map_ids=len(ids), map_ids=ctypes.addressof(ids))
        _inspect(fd, info)
        maps = {}
        for number in ids[: info.nr_map_ids]:
            map_fd = kept(f"open eBPF map {number}", libbpf.bpf_map_get_fd_by_id(number))
            maps[map_info(map_fd).name.decode()] = map_fd
        yield Program(fd, info.name.decode(), maps)


def program_id(fd: int) -> int:
    """Return the id of a program. Raises KernelError."""
    info = _ProgramInfo()
    _inspect(fd, info)
    return int(info.id)


def map_info(fd: int) -> MapInfo:
    """Return what the kernel says of a map. Raises KernelError."""
    info = MapInfo()
    _inspect(fd, info)
    return info


def _inspect(fd: int, info: ctypes.Structure) -> None:
    size = ctypes.c_uint32(ctypes.sizeof(info))
    said = library().bpf_obj_get_info_by_fd(fd, ctypes.byref(info), ctypes.byref(size))
    checked("inspect an eBPF object", said)


def items(fd: int) -> dict[bytes, bytes]:
    """Return what a hash map or a trie holds, in one request if the kernel can (5.6; 5.13). Raises KernelError."""
    info = map_info(fd)
    keys = ctypes.create_string_buffer(info.key_size * info.max_entries)
    values = ctypes.create_string_buffer(info.value_size * info.max_entries)
    # Where the next request would go on: a number, or for a trie a key.
    position = ctypes.create_string_buffer(max(info.key_size, ctypes.sizeof(ctypes.c_uint32)))
    count = ctypes.c_uint32(info.max_entries)
    said = library().bpf_map_lookup_batch(fd, None, position, keys, values, ctypes.byref(count), None)
    if said == -_ENOTSUPP:
        return dict(_one_by_one(fd, info))
    if said != -errno.ENOENT:  # that is: there are no more
        checked("list an eBPF map", said)
    found = keys.raw[: count.value * info.key_size], values.raw[: count.value * info.value_size]
    return dict(zip(_pieces(found[0], info.key_size), _pieces(found[1], info.value_size), strict=True))


def _one_by_one(fd: int, info: MapInfo) -> Iterator[tuple[bytes, bytes]]:
    """Go through a map by each key's next one; an entry that goes meanwhile is left out, or has it begin anew."""
    key, following = None, ctypes.create_string_buffer(info.key_size)
    while not (said := library().bpf_map_get_next_key(fd, key, following)):
        key = following.raw
        value = lookup(fd, key)
        if value is not None:
            yield key, value
    if said != -errno.ENOENT:
        checked("list an eBPF map", said)


def batches(fd: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """Go through a hash map: yield keys and values of so many entries at most, each in one piece (kernel 5.6).

    What comes or goes meanwhile may be left out; what stays is not. Raises KernelError.
    """
    info = map_info(fd)
    keys = ctypes.create_string_buffer(info.key_size * size)
    values = ctypes.create_string_buffer(info.value_size * size)
    position, first = ctypes.c_uint64(), True
    while True:
        count = ctypes.c_uint32(size)
        start = None if first else ctypes.byref(position)
        said = library().bpf_map_lookup_batch(
            fd, start, ctypes.byref(position), keys, values, ctypes.byref(count), None
        )
        if said != -errno.ENOENT:  # that is: there are no more
            checked("list an eBPF map", said)
        view_of_keys, view_of_values = memoryview(keys), memoryview(values)
        yield (
            bytes(view_of_keys[: count.value * info.key_size]),
            bytes(view_of_values[: count.value * info.value_size]),
        )
        if said:
            return
        first = False


def array(fd: int) -> bytes:
    """Return the elements of an array in one piece. Raises KernelError."""
    info = map_info(fd)
    keys = ctypes.create_string_buffer(info.key_size * info.max_entries)
    values = ctypes.create_string_buffer(info.value_size * info.max_entries)
    position, count = ctypes.c_uint32(), ctypes.c_uint32(info.max_entries)
    said = library().bpf_map_lookup_batch(
        fd, None, ctypes.byref(position), keys, values, ctypes.byref(count), None
    )
    if said != -errno.ENOENT:  # that is: there are no more
        checked("read an eBPF array", said)
    return values.raw


def _pieces(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


def lookup(fd: int, key: bytes) -> bytes | None:
    """Return the value of a key, None if there is none. Raises KernelError."""
    value = ctypes.create_string_buffer(map_info(fd).value_size)
    said = library().bpf_map_lookup_elem(fd, key, value)
    if said == -errno.ENOENT:
        return None
    checked("read an eBPF map", said)
    return value.raw


def insert(fd: int, key: bytes, value: bytes) -> None:
    """Set an entry of a map. Raises KernelError, with errno E2BIG if the map is full."""
    checked("write an eBPF map", library().bpf_map_update_elem(fd, key, value, ctypes.c_uint64(_ANY)))


def insert_new(fd: int, key: bytes, value: bytes) -> bool:
    """Set an entry of a map unless its key is there; tell whether it was set. Raises KernelError, as `insert`."""
    said = library().bpf_map_update_elem(fd, key, value, ctypes.c_uint64(_NOEXIST))
    if said == -errno.EEXIST:
        return False
    checked("write an eBPF map", said)
    return True


def delete(fd: int, key: bytes) -> None:
    """Delete an entry of a map. Raises KernelError, with errno ENOENT if it is not there."""
    checked("write an eBPF map", library().bpf_map_delete_elem(fd, key))


def element(fd: int, index: int) -> bytes:
    """Return an element of an array. Raises KernelError."""
    key, value = ctypes.c_uint32(index), ctypes.create_string_buffer(map_info(fd).value_size)
    checked("read an eBPF map", library().bpf_map_lookup_elem(fd, ctypes.byref(key), value))
    return value.raw


def per_cpu_sums(fd: int, indices: Iterable[int]) -> list[int]:
    """Return elements of a per-CPU array of 64-bit numbers, summed over the processors. Raises KernelError."""
    libbpf = library()
    values = (ctypes.c_uint64 * checked("count processors", libbpf.libbpf_num_possible_cpus()))()
    sums = []
    for index in indices:
        key = ctypes.c_uint32(index)
        checked("read an eBPF map", libbpf.bpf_map_lookup_elem(fd, ctypes.byref(key), values))
        sums.append(sum(values))
    return sums
