"""What the global section of haproxy.cfg says on this host: agent.toml, and what the system allows."""

from __future__ import annotations

import os
import stat
from pathlib import Path, PurePosixPath

from agent.haproxy.config import Process
from agent.settings import Settings

CA_FILES = (
    "/etc/ssl/cert.pem",  # FreeBSD, pfSense
    "/usr/local/share/certs/ca-root-nss.crt",
    "/etc/ssl/certs/ca-certificates.crt",  # Debian
    "/etc/pki/tls/certs/ca-bundle.crt",
)
PEERS_SOCKET = "peers"
_LONGEST_SOCKET = 90  # HAProxy takes 97 bytes on FreeBSD, and puts its pid behind the name while it binds


def process_of(settings: Settings) -> Process:
    """What haproxy.cfg says of the process itself."""
    chosen = settings.haproxy
    return Process(
        socket=PurePosixPath(settings.run / "haproxy.sock"),
        server_state=PurePosixPath(settings.run / "server-state"),
        maxconn=chosen.maxconn,
        hard_stop_after=chosen.hard_stop_after,
        user=chosen.user,
        group=chosen.group,
        chroot=chosen.chroot,
        log=chosen.log,
        ca_file=chosen.ca_file or find_ca_file(),
        peers=peers_socket(settings.run, chosen.chroot),
    )


def find_ca_file() -> str:
    """The system's bundle of certificate authorities, "" where none is found."""
    return next((path for path in CA_FILES if Path(path).is_file()), "")


def peers_socket(run: Path, chroot: str) -> PurePosixPath | None:
    """Where a process passes its rate limits on to the next one: in `run`, or in HAProxy's `chroot`.

    A process connects to it from inside its chroot. None where no socket can be made there: a folder that is missing,
    read-only or immutable (FreeBSD's /var/empty has the flag schg), or a path too long for a unix socket.
    """
    folder = PurePosixPath(chroot) if chroot else PurePosixPath(run)
    path = folder / PEERS_SOCKET
    if len(str(path)) > _LONGEST_SOCKET:
        return None
    if chroot:
        try:
            flags = getattr(Path(chroot).stat(), "st_flags", 0)  # FreeBSD's, and macOS's
        except OSError:
            return None
        if flags & (stat.UF_IMMUTABLE | stat.SF_IMMUTABLE) or not os.access(chroot, os.W_OK | os.X_OK):
            return None
    return path
