"""What FreeBSD's and pfSense's own tools print, as values: ifconfig, pfctl, pkg, mount, and HAProxy's -vv. Pure."""

from __future__ import annotations

import contextlib
import ipaddress
import re
import socket
from collections.abc import Iterator

from attrs import frozen

_ADDRESS = re.compile(r"^\s+inet6? ([0-9a-fA-F.:]+)(?:%\S+)?\s.*?(?:\bvhid (\d+))?\s*$")
_CARP = re.compile(r"^\s+carp: (\w+) vhid (\d+)")
_INTERFACE = re.compile(r"^([A-Za-z][\w.]*): flags=")
_REDIRECT = re.compile(
    r"^rdr (?:pass )?(?:log (?:\([^)]*\) )?)?on (?P<interface>\{[^}]*\}|(?:! )?\S+)(?: inet6?)? "
    r"proto (?P<protocol>\S+|\{[^}]*\}) from .*? to (?P<to>(?:! )?\S+)(?: port (?:= )?(?P<port>\S+))?(?: tag \S+)? "
    r"-> (?P<target>\S+)(?: port (?P<target_port>\S+))?"
)
_PACKAGE = re.compile(r"^(\S+)-([^-\s]+)\s")
_KNOWN_PORTS = {"smtp": 25, "smtps": 465, "submissions": 465, "submission": 587, "imap": 143, "imaps": 993}


@frozen(kw_only=True)
class Address:
    """An address of an interface. `carp`: MASTER, BACKUP or INIT where it is a virtual one, else ""."""

    address: str
    interface: str
    vhid: int | None = None
    carp: str = ""


@frozen(kw_only=True)
class Redirect:
    """A pf redirect of TCP. `port`, `target_port`: None where the rule names none, or a range."""

    interface: str
    to: str
    port: int | None
    target: str
    target_port: int | None


@frozen(kw_only=True)
class Build:
    """What `haproxy -vv` says of itself. `exporter`: whether it has one for Prometheus."""

    version: str
    features: frozenset[str]
    exporter: bool


def addresses(ifconfig: str) -> tuple[Address, ...]:
    """Of `ifconfig`, with the CARP state of virtual ones."""
    found: list[Address] = []
    states: dict[tuple[str, int], str] = {}
    interface = ""
    for line in ifconfig.splitlines():
        if head := _INTERFACE.match(line):
            interface = head[1]
        elif carp := _CARP.match(line):
            states[interface, int(carp[2])] = carp[1]
        elif (one := _ADDRESS.match(line)) and (address := _plain(one[1])):
            found.append(Address(address=address, interface=interface, vhid=int(one[2]) if one[2] else None))
    return tuple(
        Address(
            address=one.address,
            interface=one.interface,
            vhid=one.vhid,
            carp="" if one.vhid is None else states.get((one.interface, one.vhid), "INIT"),
        )
        for one in found
    )


def _plain(text: str) -> str:
    with contextlib.suppress(ValueError):
        return str(ipaddress.ip_address(text))
    return ""


def redirects(pfctl: str) -> tuple[Redirect, ...]:
    """Of `pfctl -sn`: the redirects of TCP."""
    found = (_REDIRECT.match(line.strip()) for line in pfctl.splitlines())
    return tuple(
        Redirect(
            interface=one["interface"],
            to=one["to"],
            port=port_number(one["port"]),
            target=one["target"],
            target_port=port_number(one["target_port"]),
        )
        for one in found
        if one is not None and "tcp" in one["protocol"]
    )


def unread_redirects(pfctl: str) -> int:
    """How many lines are redirects, and none that `redirects` understands."""
    lines = [line.strip() for line in pfctl.splitlines()]
    return sum(line.startswith("rdr ") and _REDIRECT.match(line) is None for line in lines)


def port_number(text: str | None) -> int | None:
    """The number of a port, which pfctl names by /etc/services where it can."""
    if text is None or ":" in text:
        return None
    if text.isdecimal():
        return int(text)
    with contextlib.suppress(OSError):
        return _KNOWN_PORTS.get(text) or socket.getservbyname(text, "tcp")
    return None


def packages(pkg_info: str) -> dict[str, str]:
    """Of `pkg info`: versions by name."""
    found = (_PACKAGE.match(line) for line in pkg_info.splitlines())
    return {one[1]: one[2] for one in found if one is not None}


def build(vv: str) -> Build | None:
    """Of `haproxy -vv`; None where it is no HAProxy's."""
    version = re.search(r"^HA-?Proxy version (\S+)", vv, re.MULTILINE)
    if version is None:
        return None
    listed = re.search(r"^Feature list : (.*)$", vv, re.MULTILINE)
    features = frozenset(word[1:] for word in (listed[1] if listed else "").split() if word.startswith("+"))
    exporter = "PROMEX" in features or "prometheus-exporter" in vv or "Prometheus exporter" in vv
    return Build(version=version[1], features=features, exporter=exporter)


def file_systems(mount: str) -> Iterator[tuple[str, str]]:
    """Of `mount -p` or /proc/mounts: where each is, and of what type; `md`: a disk in memory, md(4)."""
    for line in mount.splitlines():
        words = line.split()
        if len(words) > 2:
            yield words[1], "md" if words[0].startswith("/dev/md") else words[2]
