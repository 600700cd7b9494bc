"""Probes on one node: sent, captured and explained there, for whoever asks from above."""
