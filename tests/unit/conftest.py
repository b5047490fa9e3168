"""A reconcile with fakes around it."""

from __future__ import annotations

from pathlib import Path

import pytest
from kit.fakes import FakeProxy
from kit.story import make_story

from agent.converge import Story


@pytest.fixture
def proxy() -> FakeProxy:
    return FakeProxy()


@pytest.fixture
def story(tmp_path: Path, proxy: FakeProxy) -> Story:
    return make_story(tmp_path, proxy)
