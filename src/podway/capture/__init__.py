"""Packets of a pod, taken on several nodes at once, as one file that Wireshark reads."""
