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
# print_rule(), print_fromto(), print_port() and print_pool() of sbin/pfctl/pfctl_parser.c (FreeBSD, 04fecb9b4df6).
_REDIRECT = re.compile(
    r"rdr(?: pass)?(?: log(?: \([^)]*\))?)?(?: quick)?(?: on (?P<interface>! \S+|\S+))?(?: inet6?)?"
    r"(?: proto (?P<protocol>\S+))?(?P<match>(?: all| from ).*) -> (?P<pool>[^\"]+)"
)
_PF_ADDRESS = r"(?:! )?\S+(?: - \S+)?"
_PF_PORTS = r"port (?:(?:[=<>]|!=|<=|>=) \S+|\S+ (?:><|<>) \S+|\S+:\S+)"
_FROM_TO = re.compile(
    rf" from {_PF_ADDRESS}(?: {_PF_PORTS})? to (?P<to>{_PF_ADDRESS})(?: (?P<ports>{_PF_PORTS}))?(?: .*)?"
)
_POOL = re.compile(
    r"(?:\{ (?P<several>[^}]+) \}|(?P<one>\S+(?: - \S+)?))(?: port (?P<first>\d+)(?::(?P<last>\d+))?)?(?: (?!port ).*)?"
)
_LAST_PORT = 65_535
_PACKAGE = re.compile(r"^(\S+)-([^-\s]+)\s")
_KNOWN_PORTS = {"smtp": 25, "smtps": 465, "submissions": 465, "submission": 587, "imap": 143, "imaps": 993}


@frozen(kw_only=True)
class Address:
    """An address of an interface."""

    address: str
    """IP address"""
    interface: str
    """its name"""
    vhid: int | None = None
    """of a virtual address (CARP); None: it is none"""
    carp: str = ""
    """MASTER, BACKUP or INIT of a virtual address"""


@frozen(kw_only=True)
class Redirect:
    """A pf redirect of TCP."""

    interface: str
    """its name"""
    to: str
    """the address that clients connect to, as pfctl prints it"""
    ports: tuple[int, int]
    """first and last port"""
    targets: tuple[str, ...]
    """one address, table or network, or a pool of them"""
    target_ports: tuple[int, int] | None = None
    """first and last; None: the port stays as it is"""

    def target_port(self, port: int) -> int:
        """Where `port` leads: pf counts from the first of both ranges, and begins anew at the end (pf_lb.c, PF_RDR)."""
        if self.target_ports is None:
            return port
        first, last = self.target_ports
        return first + (port - self.ports[0]) % (last - first + 1)


@frozen(kw_only=True)
class Build:
    """What `haproxy -vv` says of itself."""

    version: str
    """of HAProxy"""
    features: frozenset[str]
    """names that it was built with"""
    exporter: bool
    """whether it has an exporter for Prometheus"""


def addresses(ifconfig: str) -> tuple[Address, ...]:
    """Of `ifconfig`, with the CARP state of virtual ones."""
    listed: list[Address] = []
    states: dict[tuple[str, int], str] = {}
    interface = ""
    for line in ifconfig.splitlines():
        if head := _INTERFACE.match(line):
            interface = head[1]
        elif carp := _CARP.match(line):
            states[interface, int(carp[2])] = carp[1]
        elif (match := _ADDRESS.match(line)) and (address := _plain(match[1])):
            listed.append(Address(address=address, interface=interface, vhid=int(match[2]) if match[2] else None))
    return tuple(
        Address(
            address=match.address,
            interface=match.interface,
            vhid=match.vhid,
            carp="" if match.vhid is None else states.get((match.interface, match.vhid), "INIT"),
        )
        for match in listed
    )


def _plain(text: str) -> str:
    with contextlib.suppress(ValueError):
        return str(ipaddress.ip_address(text))
    return ""


def redirects(pfctl: str) -> tuple[Redirect, ...]:
    """Of `pfctl -sn`: the redirects of TCP that can be read; see `unread_redirects`."""
    rules = (_REDIRECT.fullmatch(line.strip()) for line in pfctl.splitlines())
    read = (_redirect(rule) for rule in rules if rule is not None and _is_tcp(rule))
    return tuple(redirect for redirect in read if redirect is not None)


def unread_redirects(pfctl: str) -> int:
    """How many lines are redirects, perhaps of TCP, that `redirects` does not understand."""
    lines = [line.strip() for line in pfctl.splitlines()]
    rules = [_REDIRECT.fullmatch(line) for line in lines if line.startswith("rdr ")]
    return sum(rule is None or (_is_tcp(rule) and _redirect(rule) is None) for rule in rules)


def _is_tcp(rule: re.Match[str]) -> bool:
    return rule["protocol"] in (None, "tcp")


def _redirect(rule: re.Match[str]) -> Redirect | None:
    everything = rule["match"].partition(" label ")[0] == " all"
    match = None if everything else _FROM_TO.fullmatch(rule["match"])
    pool = _POOL.fullmatch(rule["pool"])
    if pool is None or (match is None and not everything):
        return None
    ports = _ports(match["ports"] if match else None)
    if ports is None:
        return None
    first = pool["first"]
    return Redirect(
        interface=rule["interface"] or "any interface",
        to=match["to"] if match else "any",
        ports=ports,
        targets=tuple((pool["several"] or pool["one"]).split(", ")),
        target_ports=None if first is None else (int(first), int(pool["last"] or first)),
    )


def _ports(text: str | None) -> tuple[int, int] | None:
    """The ports of `port = smtp`, `port 8000:8100`, `port > 1023`; None where they are not all in a row."""
    if text is None:
        return 0, _LAST_PORT
    first, _, rest = text.removeprefix("port ").partition(" ")
    if not rest:  # 8000:8100
        low, _, high = first.partition(":")
        ends = port_number(low), port_number(high)
    elif (number := port_number(rest)) is not None:
        ends = {
            "=": (number, number),
            "<": (0, number - 1),
            "<=": (0, number),
            ">": (number + 1, _LAST_PORT),
            ">=": (number, _LAST_PORT),
        }.get(first, (None, None))
    else:
        return None
    return None if ends[0] is None or ends[1] is None else (ends[0], ends[1])


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
    matches = (_PACKAGE.match(line) for line in pkg_info.splitlines())
    return {match[1]: match[2] for match in matches if match is not None}


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
        columns = line.split()
        if len(columns) > 2:
            yield columns[1], "md" if columns[0].startswith("/dev/md") else columns[2]
