"""edgeagent: keeps one HAProxy true to one desired-state file, and never breaks what works."""

__version__ = "0.1.0"
