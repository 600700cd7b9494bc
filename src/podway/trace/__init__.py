"""`podway trace`: the way of one packet, as it was planned, as the kernels say, and as a probe went."""
