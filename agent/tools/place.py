"""Where `agent install` puts everything: by the system that a host, or a folder, is."""

from __future__ import annotations

import sys
from pathlib import Path

from attrs import frozen

from agent.errors import UsageError
from agent.tools.platform import Platform, System, detect

_NAMED = {"pfsense": System.PFSENSE, "freebsd": System.FREEBSD, "linux": System.LINUX}


@frozen(kw_only=True)
class Place:
    """Where everything goes."""

    root: Path
    """the folder that is used as /"""
    platform: Platform
    """which system was detected"""

    @classmethod
    def of(cls, root: Path | None, chosen: str = "") -> Place:
        """Of this host, or of a folder. `chosen`: pfsense, freebsd or linux, whatever is found; "" for what is found.

        Raises UsageError on another system.
        """
        base = (root or Path("/")).resolve()
        platform = detect(base)
        if chosen:
            platform = Platform(_NAMED[chosen], (f"--platform {chosen}",))
        if platform.system is System.OPNSENSE:
            raise UsageError(
                f"this is {platform.why}: its configd and its way to boot services are not known to this installer",
                remedy="run the one file under a service of your own; --platform freebsd installs as on FreeBSD",
            )
        if root is None and not sys.platform.startswith(("freebsd", "linux")):
            raise UsageError(
                f"install is for pfSense, FreeBSD and Linux, and this is {sys.platform}",
                remedy="run the one file as it is; --root DIR --platform NAME fills a folder",
            )
        return cls(root=base, platform=platform)

    @property
    def pfsense(self) -> bool:
        """Whether it is pfSense, else FreeBSD."""
        return self.platform.system is System.PFSENSE

    def at(self, path: str) -> Path:
        """`/usr/local/...` under the root."""
        return self.root / path.lstrip("/")

    @property
    def library(self) -> Path:
        """Where the versions are."""
        return self.at("/usr/local/libexec/edgeagent")

    @property
    def linux(self) -> bool:
        """Whether systemd starts it, else FreeBSD's rc."""
        return self.platform.system is System.LINUX

    @property
    def state_path(self) -> str:
        """As the settings name it: durable. With RAM disks pfSense's /var is lost at boot (facts.md, pfSense 2)."""
        if self.linux:
            return "/var/lib/edgeagent"
        return "/usr/local/var/edgeagent" if self.pfsense else "/var/db/edgeagent"

    @property
    def run_path(self) -> str:
        """As the settings name it: volatile."""
        return "/run/edgeagent" if self.linux else "/var/run/edgeagent"

    @property
    def config_path(self) -> str:
        """The folder of settings and desired state."""
        return "/etc/edgeagent" if self.linux else "/usr/local/etc/edgeagent"

    @property
    def real(self) -> bool:
        """Whether this is the host itself, with processes to end and to start."""
        return self.root == Path("/")

    @property
    def wrapper(self) -> Path:
        """The command."""
        return self.at("/usr/local/bin/agent")

    @property
    def rc_scripts(self) -> tuple[Path, ...]:
        """The one that ends in .sh is what pfSense boots; it calls the other, which is FreeBSD's."""
        if self.linux:
            return ()
        names = ("edgeagent", "edgeagent.sh") if self.pfsense else ("edgeagent",)
        return tuple(self.at(f"/usr/local/etc/rc.d/{name}") for name in names)

    @property
    def unit(self) -> Path:
        """What systemd starts."""
        return self.at("/etc/systemd/system/edgeagent.service")

    @property
    def manuals(self) -> Path | None:
        """Where man pages are; None: pfSense has no man(1)."""
        return None if self.pfsense else self.at("/usr/local/share/man/man1")

    @property
    def services(self) -> tuple[Path, ...]:
        """What starts the agent here."""
        return (self.unit,) if self.linux else self.rc_scripts

    @property
    def every_service(self) -> tuple[Path, ...]:
        """Those of every system: an installer with another --platform may have put them there."""
        scripts = (self.at(f"/usr/local/etc/rc.d/{name}") for name in ("edgeagent", "edgeagent.sh"))
        return (*scripts, self.unit)

    @property
    def rc_conf(self) -> Path:
        """Variables of rc: rc.subr reads this file after /etc/rc.conf, on pfSense as well (facts.md, pfSense 18)."""
        return self.at("/usr/local/etc/rc.conf.d/edgeagent")

    @property
    def settings(self) -> Path:
        """agent.toml."""
        return self.at(f"{self.config_path}/agent.toml")

    @property
    def config(self) -> Path:
        """The configuration of pfSense itself; /conf is a link to it."""
        return self.at("/cf/conf/config.xml")
