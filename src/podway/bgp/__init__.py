"""BIRD: its configuration, its process, its control socket, and what it says of its peers."""
