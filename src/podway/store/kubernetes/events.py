"""Announcements as Events of events.k8s.io/v1: pure."""

import hashlib
from datetime import UTC, datetime
from typing import Any

from podway.api.kinds import KINDS
from podway.api.resource import api_version
from podway.store.announcements import NOTE, Announcement

EVENTS = "/apis/events.k8s.io/v1/namespaces/default/events"
"""Where Events are that are about objects in no namespace (client-go, tools/events)."""


def path(announcement: Announcement, by: str, instance: str) -> str:
    """Return where an announcement's Event is."""
    return f"{EVENTS}/{_name(announcement, by, instance)}"


def event(announcement: Announcement, by: str, instance: str) -> dict[str, Any]:
    """Return an announcement as an Event."""
    notice = announcement.notice
    made: dict[str, Any] = {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": _name(announcement, by, instance), "namespace": "default"},
        "eventTime": _time(announcement.first),
        "reportingController": by,
        "reportingInstance": instance,
        "action": notice.action,
        "reason": notice.reason,
        "type": "Warning",
        "note": notice.note.encode()[:NOTE].decode(errors="ignore"),
        "regarding": {
            "apiVersion": api_version(KINDS[notice.kind]),
            "kind": notice.kind,
            "name": notice.name,
            **({"uid": notice.uid} if notice.uid else {}),
        },
    }
    return made | (series(announcement) if announcement.count > 1 else {})


def series(announcement: Announcement) -> dict[str, Any]:
    """Return what changes in an Event when the same happens again: nothing else of it may."""
    return {"series": {"count": max(2, announcement.count), "lastObservedTime": _time(announcement.last)}}


def _name(announcement: Announcement, by: str, instance: str) -> str:
    """Return the name by which the same Event is found again."""
    notice = announcement.notice
    words = "\0".join((by, instance, *notice.thing, repr(announcement.first)))
    return f"{notice.name[:200]}.{hashlib.sha256(words.encode()).hexdigest()[:16]}"


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
