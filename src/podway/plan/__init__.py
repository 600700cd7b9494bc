"""From a view of the cluster to the exact kernel objects that one node must hold. Pure: no I/O."""
