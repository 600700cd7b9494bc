"""Services: from facts of the cluster to the frontends and backends of one node. Pure, in deltas."""
