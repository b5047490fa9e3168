"""HAProxy: its configuration, its commands, what it reports, and the smallest step between two states. Pure."""
