"""From policies, pods, namespaces and nodes to the entries by which one node judges connections. Pure: no I/O."""
