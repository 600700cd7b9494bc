"""Names and numbers of the CNI specification, and those that the plugin shares with its shim.

Source: https://github.com/containernetworking/cni/blob/spec-v1.1.0/SPEC.md, cited below as CNI.

The build hook reads this file before any dependency is installed and hands the numbers to the C
compiler, so that there is one truth: it must import nothing but the standard library.
"""

import enum

VERSIONS = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
"""Versions of the specification that the plugin speaks, oldest first."""

CURRENT = VERSIONS[-1]
"""The version of an answer whose request does not state a usable one."""

NETWORK = "podway"
"""Name of the network, and of the plugin's executable: a configuration's `type`."""

SOCKET = "/run/podway/cni.sock"
"""Where the shim finds the agent, unless PODWAY_CNI_SOCKET says otherwise."""

SPOOL = "/run/podway/cni-deletes"
"""Where DELs wait for an agent that is down, unless PODWAY_CNI_SPOOL says otherwise.

In /run, since what they would delete does not outlive a reboot either.
"""

MAGIC = 0x314E4350
"""First word of every frame between shim and agent: `PCN1` in memory; the digit is the format's."""

MAX_ENVIRONMENT = 64 * 1024
"""Bytes of CNI_* variables in one request."""

MAX_STDIN = 4 * 1024 * 1024
"""Bytes of configuration in one request; a GC names every attachment of the node in it."""

MAX_ANSWER = 1024 * 1024
"""Bytes of one answer."""

ANSWER_SECONDS = 60
"""How long the shim waits for an answer: well below the two minutes that a kubelet gives a runtime."""

DELETE_SECONDS = 15
"""The same for a DEL, which can be left in the spool: a pod's end should not wait for a wedged agent."""


class Code(enum.IntEnum):
    """Error codes: below 100 the specification's (CNI, "Error"), from 100 the plugin's own."""

    INCOMPATIBLE_VERSION = 1
    UNSUPPORTED_FIELD = 2
    UNKNOWN_CONTAINER = 3
    INVALID_ENVIRONMENT = 4
    IO_FAILURE = 5
    DECODING_FAILURE = 6
    INVALID_CONFIG = 7
    TRY_AGAIN_LATER = 11
    NOT_AVAILABLE = 50
    LIMITED_CONNECTIVITY = 51

    POOL_EXHAUSTED = 100
    ADDRESS_UNAVAILABLE = 101
    INTERFACE_TAKEN = 102
    CHECK_FAILED = 103
    STORE_FAILURE = 104
    KERNEL_FAILURE = 105
    UNSUPPORTED_SYSTEM = 106
    INTERNAL = 999
    """A mistake of the plugin's; libcni's ErrInternal (pkg/types/types.go)."""
