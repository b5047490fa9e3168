"""edgeagent: keeps one HAProxy in sync with one desired-state file, and never breaks what works."""

__version__ = "0.2.0"
