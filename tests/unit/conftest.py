"""A reconcile with fakes around it."""

from __future__ import annotations

from pathlib import Path

import pytest
from kit.fakes import FakeProxy
from kit.reconciler import make_reconciler

from agent.reconcile.reconciler import Reconciler


@pytest.fixture
def proxy() -> FakeProxy:
    return FakeProxy()


@pytest.fixture
def reconciler(tmp_path: Path, proxy: FakeProxy) -> Reconciler:
    return make_reconciler(tmp_path, proxy)
