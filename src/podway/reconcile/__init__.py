"""Brings a node's kernel to what is wanted of it, and keeps it there."""
