"""The CNI plugin: the shim that a container runtime executes, and its server inside the agent."""
