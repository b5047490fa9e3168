"""The recorded API server answers what the real one does, and the real one still answers what was recorded."""

from __future__ import annotations

import sys
from pathlib import Path

from kit.apiserver import RECORDED, Recorded
from kit.kube import Kube

sys.path.insert(0, str(Path(__file__).parent))
import record


def test_it_answers_what_was_recorded(bare: Kube):
    found = record.answers(bare, 5 if isinstance(bare, Recorded) else 65)
    assert found.keys() == RECORDED.keys()
    for name, told in found.items():
        told["body"], expected = _known(told["body"]), _known(RECORDED[name]["body"])
        assert (name, told["status"], told["body"]) == (name, RECORDED[name]["status"], expected)


def _known(body: object) -> object:
    """How many bookmarks there are in a minute is nobody's promise."""
    if not isinstance(body, list):
        return body
    marks = [one for one in body if one["type"] == "BOOKMARK"]
    return [one for one in body if one["type"] != "BOOKMARK"] + marks[:1]
