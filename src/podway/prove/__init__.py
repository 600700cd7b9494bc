"""Does it hold? Packets sent, captured and judged."""
