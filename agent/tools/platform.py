"""Which system a host is: pfSense, OPNsense, FreeBSD or Linux, and by which signs; signs have come and gone.

pfSense has `/etc/pfSense-rc`, `/usr/local/share/pfSense` and `/usr/local/sbin/pfSense-upgrade` (src/etc/pfSense-rc of
github.com/pfsense/pfsense, and its packages), and its config.xml begins with <pfsense>. `/etc/platform` is gone since
2.7.1. OPNsense has /usr/local/opnsense and <opnsense> (src/opnsense of github.com/opnsense/core).
"""

from __future__ import annotations

import contextlib
import enum
import re
import sys
from pathlib import Path

from attrs import frozen

_PLACES = {
    "pfSense": ("etc/pfSense-rc", "usr/local/share/pfSense", "usr/local/sbin/pfSense-upgrade"),
    "OPNsense": ("usr/local/opnsense", "usr/local/sbin/opnsense-version"),
}
_CONFIGS = ("cf/conf/config.xml", "conf/config.xml")
_BEGINNING = 4_096  # bytes of a config.xml in which its first element stands
_ROOT_ELEMENT = re.compile(rb"<(pfsense|opnsense)[\s>]")
_NAMES = {b"pfsense": "pfSense", b"opnsense": "OPNsense"}


class System(enum.StrEnum):
    """A system that the agent runs on, or that it is mistaken for."""

    PFSENSE = "pfSense"
    OPNSENSE = "OPNsense"
    FREEBSD = "FreeBSD"
    LINUX = "Linux"


@frozen
class Platform:
    """Which system was detected."""

    system: System
    """the system"""
    signs: tuple[str, ...]
    """by what: paths from its root, or words"""

    @property
    def why(self) -> str:
        """`pfSense, by /etc/pfSense-rc and <pfsense> in /cf/conf/config.xml`"""
        return f"{self.system}, by {' and '.join(self.signs)}"


def detect(root: Path) -> Platform:
    """What the host (or the folder that is taken for one) is, by what is there."""
    signs: dict[str, list[str]] = {"pfSense": [], "OPNsense": []}
    for system, places in _PLACES.items():
        signs[system] += [f"/{place}" for place in places if (root / place).exists()]
    for place in _CONFIGS:
        if (name := _named(root / place)) and not any(place in sign for sign in signs[name]):
            signs[name].append(f"<{name.lower()}> in /{place}")
            break
    if _old_mark(root / "etc/platform"):
        signs["pfSense"].append("/etc/platform (before 2.7.1)")
    for system, evidence in signs.items():
        if evidence:
            return Platform(System(system), tuple(evidence))
    if name := _linux(root):
        return Platform(System.LINUX, (f"ID={name} in /etc/os-release",))
    if root != Path("/") or sys.platform.startswith("freebsd"):
        return Platform(System.FREEBSD, ("no sign of pfSense or OPNsense",))
    return Platform(System.LINUX, (f"Python's name for it, {sys.platform}",))


def _linux(root: Path) -> str:
    """The distribution by os-release(5), which FreeBSD has too since 13; "" where it is none."""
    with contextlib.suppress(OSError):
        text = (root / "etc/os-release").read_text(errors="replace")
        match = re.search(r"^ID=[\"']?([a-z0-9._-]+)", text, re.MULTILINE)
        return match[1] if match and match[1] != "freebsd" else ""
    return ""


def _named(config: Path) -> str:
    """The system whose configuration it is, "" where it cannot be read or is of another kind."""
    try:
        with config.open("rb") as file:
            match = _ROOT_ELEMENT.search(file.read(_BEGINNING))
    except OSError:
        return ""
    return _NAMES[match[1]] if match else ""


def _old_mark(file: Path) -> bool:
    try:
        return file.read_bytes().strip() == b"pfSense"
    except OSError:
        return False
