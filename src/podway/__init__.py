"""Podway: a Kubernetes pod network. Every pod a host with its own address, every path straight."""

__version__ = "0.1.0"
