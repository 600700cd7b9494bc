"""How much is done at once for browsers, and for one of them; imports nothing, as a help text says it too."""

AT_ONCE = 64
"""Requests of the API that are worked at or wait."""
AT_ONCE_EACH = 24
"""... of one client: a browser has six connections to a server."""
STREAMS = 64
"""Browsers that may follow flows."""
STREAMS_EACH = 16
"""... of one client, each of which may have several pages open."""
