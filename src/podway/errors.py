"""Every exception Podway raises on purpose, in one tree.

PodwayError                 says what is wrong and, in `hint`, what to do about it
├── InvalidInput            what a person or a runtime handed us cannot be right
│   ├── InvalidArgument     ... on the command line
│   └── InvalidObject       ... in a resource: names the object and the field
├── StoreError
│   ├── NotFound
│   ├── AlreadyExists
│   ├── Conflict            the object changed since it was read (compare-and-swap failed)
│   ├── FieldConflict       others have set fields of the object otherwise (server-side apply)
│   ├── VersionExpired      a watch asked for history that is no longer kept: list that kind again
│   ├── ObjectDamaged       a stored object cannot be read, or its fields cannot be right: it is rejected
│   ├── StoreUnavailable    cannot be reached, read or written now; trying again may help
│   │   └── StoreForbidden  ... by us: it does not know us, or does not allow us that
│   ├── StoreDamaged        the file is not a healthy database
│   └── StoreTooNew         written by a newer Podway than this one
├── IpamError
│   ├── PoolExhausted
│   └── AddressUnavailable  a wanted address lies outside our reach or is taken
├── KernelError             a kernel request failed: errno, request and the kernel's own words
├── UnsupportedSystem       the kernel, a program or a privilege that Podway needs is missing
│   └── NeedsRoot           ... a privilege
├── RoutingError            BIRD is missing, rejects its configuration or does not answer
├── AgentError              the agent cannot start, or cannot be reached
│   └── NameTaken           an agent on another machine runs under this node's name
├── CniError                an answer to the container runtime, with the code of the CNI spec
├── ClusterError            Podway cannot come into a Kubernetes cluster, be changed there, or leave it
└── LabError                a lab cannot be built, changed or found
"""

import os


class PodwayError(Exception):
    """Root of the tree. `message` says what is wrong, `hint` what to do about it (may be empty)."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  hint: {self.hint}" if self.hint else self.message


class InvalidInput(PodwayError):
    """What a person or a container runtime handed us cannot be right."""


class InvalidArgument(InvalidInput):
    """An argument or option of a command cannot be right, whatever the cluster is like."""


class InvalidObject(InvalidInput):
    """A resource cannot be right.

    `subject` is the object (`IPPool/default`), `field` the path in it (`spec.blockSize`; may be empty), and
    `origin` where it was read (`pools.yaml, line 3`; empty if from no file).
    """

    def __init__(self, subject: str, field: str, problem: str, *, hint: str = "", origin: str = "") -> None:
        super().__init__(": ".join(part for part in (origin, subject, field, problem) if part), hint=hint)
        self.subject = subject
        self.field = field
        self.problem = problem
        self.origin = origin


class StoreError(PodwayError):
    """The cluster store refused or failed."""


class NotFound(StoreError):
    """No such object."""


class FieldConflict(StoreError):
    """Others have set fields of an object otherwise than it is to be (server-side apply).

    `held` has, of each field, its path as the API server says it, and the manager who set it.
    """

    def __init__(self, message: str, held: tuple[tuple[str, str], ...]) -> None:
        super().__init__(message)
        self.held = held


class AlreadyExists(StoreError):
    """An object of this kind and name exists."""


class Conflict(StoreError):
    """The object changed since it was read: read it again, then decide again."""


class VersionExpired(StoreError):
    """A watch asked for history of its kind that is no longer kept: list the kind, then watch from there.

    Kubernetes answers 410 Gone, reason Expired.
    """


class ObjectDamaged(StoreError):
    """A stored object cannot be read, or its fields cannot be right: nobody is given it as a fact.

    `found` is what could be read of it, None if nothing could.
    """

    def __init__(self, message: str, *, hint: str = "", found: object = None) -> None:
        super().__init__(message, hint=hint)
        self.found = found


class StoreUnavailable(StoreError):
    """The store cannot be reached, read or written now."""


class StoreForbidden(StoreUnavailable):
    """The store does not know us, or does not allow us what we ask: Kubernetes answers 401 or 403."""


class StoreDamaged(StoreError):
    """The store's file is not a healthy database."""


class StoreTooNew(StoreError):
    """The store was written by a newer Podway than this one."""


class IpamError(PodwayError):
    """No address can be leased as asked."""


class PoolExhausted(IpamError):
    """Every pool that may serve this pod is full."""


class AddressUnavailable(IpamError):
    """A wanted address lies outside our reach, or is taken."""


class KernelError(PodwayError):
    """A kernel request failed. `errno` is positive; `kernel_says` is the extended ACK text, if any."""

    def __init__(self, request: str, errno: int, kernel_says: str = "", *, hint: str = "") -> None:
        text = f"{request}: {os.strerror(errno)}"
        super().__init__(f"{text} ({kernel_says})" if kernel_says else text, hint=hint)
        self.request = request
        self.errno = errno
        self.kernel_says = kernel_says


class UnsupportedSystem(PodwayError):
    """The kernel, a program or a privilege that Podway needs is missing."""


class NeedsRoot(UnsupportedSystem):
    """This process may not do something. `what` is that, such as `reading the store PATH`."""

    def __init__(self, what: str, *, hint: str = "") -> None:
        super().__init__(f"{what} needs root", hint=hint)


class RoutingError(PodwayError):
    """BIRD is missing, rejects its configuration or does not answer."""


class AgentError(PodwayError):
    """The agent cannot start, or cannot be reached."""


class NameTaken(AgentError):
    """An agent on another machine runs under this node's name."""


class CniError(PodwayError):
    """An error answer to the container runtime; `code` is one of the CNI spec's (podway.cni.spec)."""

    def __init__(self, code: int, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.code = code


class ClusterError(PodwayError):
    """Podway cannot come into a Kubernetes cluster, be changed there, or leave it."""


class LabError(PodwayError):
    """A lab cannot be built, changed or found."""


def explain(error: BaseException) -> str:
    """Say an error in one line; of a group, its first."""
    if isinstance(error, BaseExceptionGroup):
        return explain(error.exceptions[0])
    words = str(error).splitlines()
    return f"{type(error).__name__}: {words[0]}" if words else type(error).__name__
