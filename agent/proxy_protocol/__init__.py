"""The PROXY protocol: its header, and what a server is by how it answers. Pure."""
