"""Podway's container image, made of Debian packages and Python wheels, without a registry and without root."""
