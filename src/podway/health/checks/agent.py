"""The agent itself: its sources, its store, its disk, its certificate, its BIRD."""

from collections.abc import Iterator

from podway.health.facts import NodeFacts
from podway.health.finding import Problem, Severity, node_check

SLOW = 0.5
"""Seconds for one read from the store that are too many; it takes a millisecond."""

MIN_FREE = 64 << 20
MIN_FREE_PART = 0.02
"""A disk with less than both left, in bytes and in parts of it, is nearly full."""

FRESH = 600.0
"""Seconds for which a task's failure is told: one that lasts comes again within half a minute."""

UNRENEWED = 0.2
"""A certificate with less than this part of its life left should have been renewed long ago."""


@node_check(
    "looking",
    looks_at="whether every source of facts could be read",
    why="what could not be looked at may hide any of the other faults",
    caused=False,
)
def looking(facts: NodeFacts) -> Iterator[Problem]:
    """A source that fails is a finding, and the other checks go on."""
    for source, reason in facts.unseen.items():
        yield Problem(
            f"{source} could not be looked at: {reason}", "see the agent's log", source, Severity.WARNING
        )


@node_check(
    "tasks",
    looks_at="whether one of the agent's tasks failed in a way that nobody expected",
    why="the agent does it again until it goes well; until then what that task looks after is not looked after",
    caused=False,
)
def tasks(facts: NodeFacts) -> Iterator[Problem]:
    """A failure that is long past is in the log only."""
    for failure in facts.memory.failures:
        if facts.now - failure.at < FRESH:
            times = f"{failure.times} times, the last " if failure.times > 1 else ""
            yield Problem(
                f"failed {times}{facts.now - failure.at:.0f} s ago: {failure.error}",
                "see the agent's log, which says where; this is a mistake in Podway, please report it",
                failure.task,
            )


@node_check(
    "store",
    looks_at="whether the agent is in touch with the store, and how long one read takes",
    why="without the store pods start as long as the node's blocks last, and changes elsewhere are not heard of",
)
def store(facts: NodeFacts) -> Iterator[Problem]:
    """A read is tried; what the agent met with since its last success counts as well."""
    problem = facts.store.problem or facts.memory.store_problem
    if problem:
        yield Problem(problem, "bring the store back; the agent tries again every second by itself", "store")
    elif facts.store.seconds > SLOW:
        yield Problem(
            f"one read took {facts.store.seconds:.1f} s",
            "look at the load and the disk of the store's machine",
            "store",
            Severity.WARNING,
        )


@node_check(
    "disk",
    looks_at="room on the file systems of the agent's run directory and of an embedded store",
    why="on a full disk the store refuses changes, and DELs that wait for the agent are lost",
)
def disk(facts: NodeFacts) -> Iterator[Problem]:
    """The same file system counts once."""
    told = set()
    for found in facts.files.disks:
        if (
            found.free < MIN_FREE
            and found.free < MIN_FREE_PART * found.total
            and (found.free, found.total) not in told
        ):
            told.add((found.free, found.total))
            yield Problem(
                f"{found.free >> 20} MiB of {found.total >> 20} MiB are free",
                f"make room: df -h {found.path}",
                found.path,
                Severity.WARNING if found.free >= MIN_FREE // 16 else Severity.ERROR,
            )


@node_check(
    "channel",
    looks_at="the agent's channel for other nodes, and how much of its certificate's life is left",
    why="without the channel, or with an expired certificate, no other machine can ask this agent",
)
def channel(facts: NodeFacts) -> Iterator[Problem]:
    """Renewal needs no help, so a certificate near its end means that renewal fails."""
    memory = facts.memory
    if memory.channel_problem:
        yield Problem(memory.channel_problem, "the agent tries again by itself; its log has a hint", "channel")
    if memory.certificate_expires is None:
        return
    left = memory.certificate_expires - facts.now
    if left <= memory.view.config.channel.certificate_lifetime_seconds * UNRENEWED:
        yield Problem(
            f"its certificate expires in {left / 3600:.1f} hours and was not renewed"
            if left > 0
            else f"its certificate expired {-left / 3600:.1f} hours ago",
            "the agent renews it by itself while store and clock are right: look at both, and at its log",
            "channel",
            Severity.WARNING if left > 0 else Severity.ERROR,
        )


@node_check(
    "bird",
    looks_at="whether the node's BIRD answers and has taken the agent's configuration",
    why="BIRD tells the other nodes where this node's pods are, and learns where theirs are",
)
def bird(facts: NodeFacts) -> Iterator[Problem]:
    """BIRD refusing a configuration goes on with the former one."""
    problem = facts.routing.problem or facts.memory.routing_problem
    if problem:
        yield Problem(
            problem,
            "see bird.log in the agent's run directory; if BIRD hangs, kill the process named in bird.pid: the "
            "agent starts another one and no route is lost",
            "BIRD",
        )
