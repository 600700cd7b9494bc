"""Failures as the CNI specification wants them told: a code, a message, and in `details` what to do."""

import errno
import os

import msgspec

from podway.cni.spec import Code
from podway.errors import (
    AddressUnavailable,
    AgentError,
    CniError,
    InvalidInput,
    KernelError,
    PodwayError,
    PoolExhausted,
    StoreError,
    StoreUnavailable,
    UnsupportedSystem,
)

CODES: tuple[tuple[type[PodwayError], Code], ...] = (
    (PoolExhausted, Code.POOL_EXHAUSTED),
    (AddressUnavailable, Code.ADDRESS_UNAVAILABLE),
    (StoreUnavailable, Code.TRY_AGAIN_LATER),
    (StoreError, Code.STORE_FAILURE),
    (KernelError, Code.KERNEL_FAILURE),
    (UnsupportedSystem, Code.UNSUPPORTED_SYSTEM),
    (AgentError, Code.TRY_AGAIN_LATER),
    (InvalidInput, Code.INVALID_CONFIG),
)
"""The code of each kind of failure; the first that fits counts."""


_TAKEN = (
    "the pod has it already, made by another network or plugin: "
    "use another CNI_IFNAME, and give a pod only one network with default routes"
)


class _Error(msgspec.Struct, omit_defaults=True):
    cni_version: str = msgspec.field(name="cniVersion")
    code: int
    msg: str
    details: str = ""


def cni_error(error: PodwayError) -> CniError:
    """Return the error as the runtime is to be told it."""
    if isinstance(error, CniError):
        return error
    if isinstance(error, KernelError) and error.errno == errno.EEXIST:
        return CniError(Code.INTERFACE_TAKEN, error.message, hint=error.hint or _TAKEN)
    code = next((code for kind, code in CODES if isinstance(error, kind)), Code.INTERNAL)
    return CniError(code, error.message, hint=error.hint)


def unexpected(error: BaseException) -> CniError:
    """Return what the runtime is told of a failure that nobody raised on purpose."""
    code = Code.IO_FAILURE if isinstance(error, OSError) else Code.INTERNAL
    message = f"{type(error).__name__}: {error}"
    return CniError(code, message, hint="the agent's log has the traceback; please report it")


def netns_error(path: str, number: int) -> CniError:
    """Return the error for a CNI_NETNS that the shim failed to open with this errno."""
    return CniError(
        Code.INVALID_ENVIRONMENT,
        f"CNI_NETNS: {path}: {os.strerror(number)}",
        hint="the runtime must make the network namespace before ADD and keep it until DEL",
    )


def render_error(error: CniError, version: str) -> bytes:
    """Return the error as JSON (CNI, "Error"); `version` is the answer's cniVersion."""
    return msgspec.json.encode(_Error(version, int(error.code), error.message, error.hint))
