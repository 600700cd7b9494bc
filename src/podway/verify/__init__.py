"""Proofs of the cluster's network: packets between all pods and nodes, counted and judged."""
