"""Fixtures for labs of our own: unique names, removed whatever happens, the root namespace compared."""

import os
import secrets
import subprocess
from collections.abc import Iterator

import pytest

from podway.errors import LabError
from podway.lab import cluster

ROOT_NAMESPACE = (
    ("ip", "-details", "link"),
    ("ip", "address"),
    ("ip", "-4", "route", "show", "table", "all"),
    ("ip", "-6", "route", "show", "table", "all"),
    ("ip", "rule"),
    ("nft", "list", "ruleset"),
    ("sysctl", "-a", "--pattern", r"^net\.(ipv4\.(ip_forward|conf)|ipv6\.conf|netfilter)"),
)


def root_namespace() -> str:
    """Return what a lab must leave alone, as text; counters of lifetimes are left out."""
    texts = (
        subprocess.run(command, check=True, capture_output=True, text=True).stdout for command in ROOT_NAMESPACE
    )
    return "\n".join(line for text in texts for line in text.splitlines() if "valid_lft" not in line)


@pytest.fixture
def lab_name() -> Iterator[str]:
    """A lab's name that nobody else has; whatever stands under it is removed after the test."""
    name = f"t{os.getpid()}x{secrets.token_hex(3)}"
    yield name
    try:
        cluster.down(name)
    except LabError as error:
        assert error.message == f"no lab {name!r}"  # noqa: PT017 - anything else is a failure to clean up


@pytest.fixture
def untouched_root() -> Iterator[None]:
    """The root namespace is after the test what it was before."""
    before = root_namespace()
    yield
    assert root_namespace() == before
