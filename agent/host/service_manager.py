"""What the service reports to the program that has started it, by sd_notify(3): systemd's Type=notify."""

from __future__ import annotations

import contextlib
import os
import socket

_VARIABLE = "NOTIFY_SOCKET"


class ServiceManager:
    """Of this process. Says nothing where nobody listens."""

    def __init__(self) -> None:
        # Taken out, as sd_notify(3) advises: HAProxy and notify.command inherit the environment.
        self._address = os.environ.pop(_VARIABLE, "")

    def notify(self, *lines: str) -> None:
        """`READY=1`, `STOPPING=1`, `STATUS=...`: each a line."""
        if not self._address:
            return
        address = f"\0{self._address[1:]}" if self._address.startswith("@") else self._address
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as door:
            door.settimeout(1)
            door.connect(address)
            door.send("\n".join(lines).encode())
