"""The stages of a reconcile: what the progress of a change and the timings of a report are called."""

from __future__ import annotations

STAGES = ("recover", "load", "preflight", "plan", "check", "swap", "switch", "verify", "commit")
"""Of one change that goes live, in their order."""

STAGE_WORDS = {
    "recover": "looking at what runs",
    "load": "reading the document",
    "preflight": "trying addresses and servers",
    "plan": "planning",
    "check": "testing the configuration with haproxy -c and a trial start",
    "swap": "writing the configuration",
    "switch": "applying it to HAProxy",
    "verify": "verifying that it serves",
    "commit": "recording the generation",
    "roll back": "putting the previous configuration back",
    "keep": "looking after what is live",
    "revive": "starting HAProxy",
}
"""The same, and what follows a failure, as people read them."""
