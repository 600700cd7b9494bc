"""Passwords of sessions (TCP MD5, RFC 2385), from files and Secrets. They go into bird.conf and nowhere else."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeAlias

import msgspec

from podway.api.kinds.bgp_peer import PasswordSource, password_problem
from podway.api.kinds.secret import Secret
from podway.plan.outside import OutsidePeer

NO_PASSWORD = "no password"

Secrets: TypeAlias = Mapping[tuple[str, str], Secret]
"""By namespace and name."""


class Passwords(msgspec.Struct, frozen=True):
    """What was found for the sessions that need one, by their names: it, or in words why it is not there."""

    known: Mapping[str, str] = {}
    missing: Mapping[str, str] = {}

    def __repr__(self) -> str:
        """Say whose passwords are known; they are no business of logs and tracebacks."""
        return f"Passwords(known={sorted(self.known)}, missing={dict(self.missing)})"


def read_passwords(peers: Iterable[OutsidePeer], secrets: Secrets) -> Passwords:
    """Look up the passwords of sessions. Line ends after the password in a file do not belong to it."""
    known, missing = {}, {}
    for peer in peers:
        if peer.password is None:
            continue
        where = _place(peer.password)
        try:
            password = _read(peer.password, secrets)
            problem = password_problem(password)
        except OSError as error:
            problem = f"cannot be read: {error.strerror}"
        except LookupError:
            problem = "does not exist"
        except ValueError:  # UnicodeDecodeError is one
            problem = "is not UTF-8 text"
        if problem:
            missing[peer.name] = f"{NO_PASSWORD}: {where} {problem}"
        else:
            known[peer.name] = password
    return Passwords(known, missing)


def _place(source: PasswordSource) -> str:
    if source.secret is None:
        return source.file
    return f"{source.secret.key} of Secret/{source.secret.namespace}/{source.secret.name}"


def _read(source: PasswordSource, secrets: Secrets) -> str:
    if source.secret is None:
        return Path(source.file).read_text("utf-8").rstrip("\r\n")
    return secrets[source.secret.namespace, source.secret.name].value(source.secret.key)
