"""One Postfix and one Dovecot for all tests here."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from kit.left_out import leave_out
from kit.mail import MailHost, mail_host, missing


@pytest.fixture(scope="session")
def mail(root: None) -> Iterator[MailHost]:
    if absent := missing():
        leave_out(f"{' and '.join(absent)} not installed")
    with mail_host() as host:
        yield host
