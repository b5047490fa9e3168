"""The command line: each command parses, calls, prints."""

from agent.cli.commands import main

__all__ = ["main"]
