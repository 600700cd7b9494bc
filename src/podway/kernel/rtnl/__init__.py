"""rtnetlink: one module for each kind of object, with requests to build (pure) and records to read.

podway.kernel.netlink below them is the wire format and a connection, nothing of meaning. Outside `kernel/` stand
two doors to this room: podway.kernel.network reads, podway.kernel.requests changes.
"""
