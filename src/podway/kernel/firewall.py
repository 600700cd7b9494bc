"""All firewall rules that nftables knows of, whoever made them: the door for whoever reads and changes nothing."""

from typing import Any

from podway.kernel.nft.libnftables import Nftables


def ruleset() -> list[dict[str, Any]]:
    """Return the rules of the calling thread's namespace as libnftables-json(5) has them.

    Raises KernelError, UnsupportedSystem.
    """
    nftables = Nftables(lambda function: function())
    try:
        return nftables.ruleset()
    finally:
        nftables.close()
