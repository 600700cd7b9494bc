"""nftables, by its own library."""
