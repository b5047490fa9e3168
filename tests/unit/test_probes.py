"""Addresses that can be bound and must not be: FreeBSD binds beside a listener that overlaps (facts.md, pfSense 13)."""

from __future__ import annotations

from pathlib import Path

import pytest
from kit.freebsd import bind_rule

from agent.desired.addresses import Endpoint, endpoint
from agent.host import listeners, probes
from agent.host.listener import Listener
from agent.host.probes import HostProber
from agent.host.processes import Process

GUI = Listener(endpoint=endpoint("0.0.0.0:443"), pid=22107, program="nginx")
GUI6 = Listener(endpoint=endpoint("[::]:443"), pid=22107, program="nginx")
DNS = Listener(endpoint=endpoint("10.0.20.1:53"), pid=812, program="unbound")
OURS = Listener(endpoint=endpoint("10.0.20.1:25"), pid=4321, program="edge-hapro")
KERNEL = Listener(endpoint=endpoint("192.0.2.1:2049"))


@pytest.fixture(params=["FreeBSD", "Linux"])
def system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    name: str = request.param
    monkeypatch.setattr(probes, "KERNEL_ALLOWS_OVERLAP", name == "FreeBSD")
    return name


def refused(monkeypatch: pytest.MonkeyPatch, wanted: str, *listening: Listener, allows: bool = True) -> str:
    """The detail of the refusal of an address beside those listeners, "" where it is taken."""

    def linux(one: Endpoint) -> object:
        """As inet_csk_bind_conflict of Linux has it without SO_REUSEPORT: a listener that overlaps is a conflict."""
        overlapping = [listener for listener in listening if listeners.overlap(one, listener.endpoint)]
        return bind_rule([Listener(endpoint=one)] if overlapping else [])(one)

    monkeypatch.setattr(probes.listeners, "unbound", bind_rule(listening) if allows else linux)
    monkeypatch.setattr(probes.listeners, "listeners", lambda: listening)
    monkeypatch.setattr(probes.processes, "started_on", lambda *_, **__: (Process(4321, 1.0),))
    found = HostProber(Path("/state/haproxy.cfg")).unbound([endpoint(wanted)])
    return found[endpoint(wanted)].detail if found else ""


@pytest.mark.parametrize(
    ("wanted", "detail"),
    [
        ("10.0.20.1:443", "the address is in use, by nginx (pid 22107) at 0.0.0.0:443"),
        ("0.0.0.0:53", "the address is in use, by unbound (pid 812) at 10.0.20.1:53"),
        ("0.0.0.0:443", "the address is in use, by nginx (pid 22107)"),
        ("[2001:db8::1]:443", ""),  # the web GUI of this host listens on IPv4 alone
        ("10.0.20.1:8443", ""),
        ("0.0.0.0:25", ""),  # our own overlaps
    ],
)
def test_an_address_that_overlaps_a_foreign_listener_is_refused_and_named(
    monkeypatch: pytest.MonkeyPatch, system: str, wanted: str, detail: str
):
    assert refused(monkeypatch, wanted, GUI, DNS, OURS, allows=system == "FreeBSD") == detail


def test_ipv6_is_looked_at_as_well(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(probes, "KERNEL_ALLOWS_OVERLAP", True)
    assert refused(monkeypatch, "[2001:db8::1]:443", GUI6).endswith("by nginx (pid 22107) at [::]:443")


def test_a_socket_without_a_process_is_no_reason_where_the_kernel_binds(monkeypatch: pytest.MonkeyPatch):
    """The system prints "?" for one that was closed while it looked; where bind fails it is somebody's."""
    monkeypatch.setattr(probes, "KERNEL_ALLOWS_OVERLAP", True)
    assert refused(monkeypatch, "0.0.0.0:2049", KERNEL) == ""
    assert "may not see" in refused(monkeypatch, "192.0.2.1:2049", KERNEL)


def test_a_process_of_ours_that_ends_while_it_is_looked_at_stays_ours(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(probes, "KERNEL_ALLOWS_OVERLAP", True)
    order: list[str] = []
    monkeypatch.setattr(probes.listeners, "unbound", bind_rule([OURS]))
    monkeypatch.setattr(probes.listeners, "listeners", lambda: order.append("listeners") or (OURS,))
    monkeypatch.setattr(probes.processes, "started_on", lambda *_, **__: order.append("ours") or (Process(4321, 1.0),))
    assert HostProber(Path("/c")).unbound([endpoint("0.0.0.0:25")]) == {}
    assert order == ["ours", "listeners"]
