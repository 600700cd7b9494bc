"""Blocks for nodes, agreed in the store; addresses for pods, held by the kernel."""
