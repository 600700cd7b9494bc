"""A whole cluster on one machine: nodes are network namespaces, agents and BIRDs the real ones."""
