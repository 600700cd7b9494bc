"""How agents are asked: over the admin socket of their node, and over TLS from other machines."""
