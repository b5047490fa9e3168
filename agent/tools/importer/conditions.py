"""HAProxy's small words: durations, addresses, and conditions as far as a desired state has words for them.

Pure, but for the files of patterns that `src -f` names.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from attrs import frozen

_DURATION = re.compile(r"(\d{1,12})(us|ms|s|m|h|d)?")
_FACTORS = {"ms": 1, "": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_SNI = ("req.ssl_sni", "req_ssl_sni", "req.ssl_sni,lower")
# HAProxy compares IPv4 clients with IPv6 patterns as mapped ones (M), and with 6to4; here families are apart.
IPV4, IPV6 = ("4",), ("6",)
_HOLDS_IPV4 = tuple(ipaddress.IPv6Network(text) for text in ("::ffff:0:0/96", "2002::/16"))


def number(text: str) -> int | None:
    """A whole number of at most nine digits."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else None


def milliseconds(text: str) -> int | None:
    """Of a duration as HAProxy writes it; None for anything else, and for microseconds."""
    match = _DURATION.fullmatch(text)
    if match is None or match[2] == "us":
        return None
    return int(match[1]) * _FACTORS[match[2] or ""]


def endpoint(text: str) -> str | None:
    """`ADDRESS:PORT` as a desired state writes it; None for a name, a range, a variable."""
    family = text[:5] if text.startswith(("ipv4@", "ipv6@")) else ""
    host, _, port = text.removeprefix(family).rpartition(":")
    wildcard = "::" if family == "ipv6@" else "0.0.0.0"  # noqa: S104  # read, not bound
    try:
        address = ipaddress.ip_address(wildcard if host in ("", "*") else host.strip("[]"))
    except ValueError:
        return None
    port_number = number(port)
    if not port_number or port_number > 65_535 or (family and int(family[3]) != address.version):
        return None
    return f"[{address}]:{port_number}" if address.version == 6 else f"{address}:{port_number}"


@frozen
class Acl:
    """What an acl tests."""

    kind: str
    """sni, src, hello (a TLS ClientHello is there) or helper (which address family a client has)"""
    patterns: tuple[str, ...]
    """what it matches"""


@frozen
class Term:
    """One test of a condition."""

    positive: bool
    """it is not negated"""
    acl: Acl
    """what is tested"""
    inline: bool
    """it stands in braces"""
    helped: bool
    """a helper stands beside it, and agrees with its patterns"""


def matcher(words: tuple[str, ...]) -> Acl | None:
    """What the words of an acl match: names or sources; None where a desired state has no word for it."""
    if not words:
        return None
    what, flags, patterns = words[0], [], list(words[1:])
    while patterns and patterns[0].startswith("-"):
        flags.append(patterns.pop(0))
        if flags[-1] == "-m" and patterns:
            flags[-1] = f"-m {patterns.pop(0)}"
        if flags[-1] == "--":
            break
    flags = [flag for flag in flags if flag not in ("--", "-i")]
    if what == "src" and flags == ["-f"] and len(patterns) == 1:
        flags, patterns = [], list(_lines_of(patterns[0]))
    if what == "src" and flags in ([], ["-m ip"]) and patterns:
        try:
            return Acl("src", tuple(_network(pattern) for pattern in patterns))
        except ValueError:
            return None
    if what not in _SNI or len(flags) > 1:
        return None
    how = flags[0] if flags else "-m str"
    if how == "-m found" and not patterns:
        return Acl("sni", ("*",))
    if not patterns or any("*" in pattern for pattern in patterns):  # a star is a star there
        return None
    if what.endswith(",lower") and any(pattern != pattern.lower() for pattern in patterns):  # never matches
        return None
    if how == "-m str":
        return Acl("sni", tuple(patterns))
    if how == "-m end":
        suffixes = [(f"*{pattern}",) if pattern.startswith(".") else (pattern, f"*.{pattern}") for pattern in patterns]
        return Acl("sni", tuple(name for names in suffixes for name in names))
    return None


def ends_without_dot(words: Iterable[str]) -> bool:
    """Whether a test of names by their end has a pattern that does not begin with a dot."""
    rest = list(words)
    by_end = False
    while rest:
        word = rest.pop(0)
        if word == "-m" and rest:
            by_end = rest.pop(0) == "end"
        elif word in ("{", "}", "||", "or"):
            by_end = False
        elif by_end and not word.startswith(("-", ".")):
            return True
    return False


def _lines_of(file: str) -> Iterator[str]:
    """The patterns in a file, one a line, `#` begins a comment (HAProxy's manual, 7.1.1). None where it is not here."""
    try:
        text = Path(file).read_text()
    except (OSError, ValueError):
        return
    for line in text.splitlines():
        if (pattern := line.strip()) and not pattern.startswith("#"):
            yield pattern


def _network(text: str) -> str:
    """Raises ValueError for what matches other clients here than there."""
    address, slash, mask = text.partition("/")
    if slash and "." in mask:
        inverted = int(ipaddress.IPv4Address(mask)) ^ 0xFFFFFFFF
        if inverted & (inverted + 1):
            raise ValueError("a mask with holes")
    elif slash and not mask.isdecimal():
        raise ValueError("no mask")
    network = ipaddress.ip_network(f"{address}/{mask}" if slash else address, strict=False)
    if isinstance(network, ipaddress.IPv6Network) and any(network.overlaps(mapped) for mapped in _HOLDS_IPV4):
        raise ValueError("IPv6 that holds IPv4 clients")
    return str(network.network_address) if network.prefixlen == network.max_prefixlen else str(network)


def terms(words: Iterable[str], acls: Mapping[str, Acl | None], *, together: bool = False) -> list[Term] | None:
    """A condition that is a choice of single tests (`together`: all of several, no choice); None for anything else."""
    choices = [list(_tests(choice)) for choice in _split(words)]
    if together:
        if len(choices) != 1:
            return None
        choices = [[entry] for entry in choices[0]]
    result: list[Term] = []
    for tests in choices:
        known = [(ok, matcher(inner) if inner else acls.get(name), bool(inner)) for ok, name, inner in tests]
        helpers = [
            ok == (entry.patterns == IPV4) for ok, entry, _ in known if entry is not None and entry.kind == "helper"
        ]
        real = [entry for entry in known if entry[1] is None or entry[1].kind != "helper"]
        positive, acl, inline = real[0] if len(real) == 1 else (True, None, False)
        if acl is None or len(helpers) > 1:
            return None
        if helpers and (acl.kind != "src" or {":" not in pattern for pattern in acl.patterns} != {helpers[0]}):
            return None
        result.append(Term(positive, acl, inline, bool(helpers)))
    return result or None


def _split(words: Iterable[str]) -> Iterator[list[str]]:
    part: list[str] = []
    for word in words:
        if word in ("||", "or"):
            yield part
            part = []
        else:
            part.append(word)
    yield part


def _tests(words: list[str]) -> Iterator[tuple[bool, str, tuple[str, ...]]]:
    """Each test of a condition: not negated, its name, or what stands in its braces."""
    rest = list(words)
    while rest:
        word = rest.pop(0)
        positive = not word.startswith("!")
        word = word.removeprefix("!")
        if not word and rest:
            word = rest.pop(0)
        if word == "{":
            inner = rest[: rest.index("}")] if "}" in rest else rest
            rest = rest[len(inner) + 1 :]
            yield positive, "", tuple(inner)
        else:
            yield positive, word, ()
