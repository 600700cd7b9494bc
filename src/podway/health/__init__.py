"""What goes wrong on nodes: found, explained, and told with what to do about it.

facts       typed facts of one node, and of all nodes together
sources/    where facts come from: one module for each source; all the looking is done there
checks/     judges: each a small pure function from facts to problems, in one module for each theme
finding     findings, and the registry from which `podway doctor --list` and docs/doctor.md are made
ruleset     firewall rules as data; `walk` sends an imagined packet through them
doctor      joins these inside the agent; `cluster` inside the command
"""
