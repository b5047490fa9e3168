"""agent.toml: everything has a default, everything wrong is named at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent import settings
from agent.errors import ExitCode, UsageError

DESIGN = b"""
[paths]
desired = "/usr/local/etc/edgeagent/desired.yaml"
state   = "/var/db/edgeagent"
run     = "/var/run/edgeagent"
templates = ""
[haproxy]
binary = "haproxy"
process_name = "edge-haproxy"
user = ""
group = ""
chroot = ""
maxconn = 4000
hard_stop_after = "15m"
max_draining = 4
log = ""
[apply]
debounce = "25ms"
resync = "30s"
verify_timeout = "10s"
probe = "mismatch"
keep_generations = 20
[metrics]
listen = "127.0.0.1:9127"
[sync]
allowed_signers = ""
max_bytes = 1048576
"""


def test_every_key_of_the_design_has_the_default_the_design_gives_it():
    found = settings.parse(DESIGN, "agent.toml")
    assert (found.haproxy, found.apply, found.metrics, found.sync) == (
        settings.Haproxy(),
        settings.Apply(),
        settings.Metrics(),
        settings.Sync(),
    )
    assert found.apply.debounce == 25
    assert settings.parse(b"", "agent.toml") == settings.Settings()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[haproxy]\nmaxcon = 5", 'haproxy.maxcon: unknown key; did you mean "maxconn"?'),
        ("[metrics]\ndocs = 'javascript:alert(1)'", "metrics.docs: expected a web address"),
        ("[haproxy]\nmaxconn = '5'", "haproxy.maxconn: expected a whole number"),
        ("[haproxy]\nprocess_name = 'haproxy'", 'haproxy.process_name: must not be "haproxy"'),
        ("[haproxy]\nprocess_name = 'a/b'", "haproxy.process_name: expected a process name"),
        ("[haproxy]\nuser = 'www data'", "haproxy.user: expected the name of a user or group"),
        ("[haproxy]\nlog = 'x y'", "haproxy.log: expected a syslog address"),
        ('[haproxy]\nlog = "x\\ny"', "haproxy.log: expected a syslog address"),
        ("[paths]\nrun = 'run'", "paths.run: expected an absolute path"),
        ('[paths]\nrun = "/a\'b"', "paths.run: a path without any of"),
        ('[paths]\nrun = "/a\\nb"', "paths.run: a path without any of"),
        ('[paths]\nrun = "/a,b"', "paths.run: a path without any of"),
        ('[paths]\nrun = "/a$b"', "paths.run: a path without any of"),
        (f"[paths]\nrun = '/{'a' * 76}'", "paths.run: longer than 76 bytes"),
        ("[apply]\nprobe = 'maybe'", "apply.probe: expected one of off, mismatch, require"),
        ("[apply]\nresync = 30", "apply.resync: expected a duration with its unit"),
        ("x = ", "not TOML: "),
    ],
)
def test_each_wrong_value_is_a_usage_error_with_its_place(text: str, message: str):
    with pytest.raises(UsageError) as caught:
        settings.parse(text.encode(), "agent.toml")
    assert f"agent.toml: {message}" in str(caught.value)
    assert caught.value.exit_code is ExitCode.USAGE


def test_everything_wrong_is_named_at_once():
    with pytest.raises(UsageError) as caught:
        settings.parse(b"x = 1\n[paths]\nrun = 'r'\n[sync]\nmax_bytes = 0", "agent.toml")
    assert len(str(caught.value).splitlines()) == 3


def test_where_settings_come_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    one, other = tmp_path / "one.toml", tmp_path / "other.toml"
    one.write_text("[haproxy]\nmaxconn = 1")
    other.write_text("[haproxy]\nmaxconn = 2")
    monkeypatch.setattr(settings, "CONFIG_FOLDER", tmp_path / "absent")
    monkeypatch.delenv(settings.ENVIRONMENT, raising=False)
    assert settings.load(None) == settings.Settings()
    monkeypatch.setenv(settings.ENVIRONMENT, str(other))
    assert settings.load(None).haproxy.maxconn == 2
    assert settings.load(one).haproxy.maxconn == 1
    with pytest.raises(UsageError, match="there is no such file"):
        settings.load(tmp_path / "absent.toml")
    with pytest.raises(UsageError, match="Is a directory"):
        settings.load(tmp_path)
