"""What happened to packets, and why: what `verify` and `trace` judge by."""
