"""Something like a FreeBSD box: folders of its own over /etc, /usr/local, /usr/sbin and /var, and processes of its own.

Linux namespaces, with stand-ins for the base tools that our scripts touch (tests/freebsd/base). Whatever is started in
it ends with it. The network is the machine's own: loopback only.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from kit.left_out import leave_out

BASE = Path(__file__).parents[1] / "freebsd/base"
# Process 1 reaps whoever is left to it, as init does.
_INIT = "import signal; signal.signal(signal.SIGCHLD, signal.SIG_IGN); [signal.pause() for _ in iter(int, 1)]"
FOLDERS = ("/etc", "/usr/local", "/usr/sbin", "/var", "/cf", "/run")


class Box:
    """`run` runs a command in it; `path` is where its files are, seen from outside."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        setup = ["set -e"]
        for place in FOLDERS:
            upper, work = self._layers(place)
            Path(place).mkdir(exist_ok=True)
            setup.append(f"mount -t overlay overlay -o lowerdir={place},upperdir={upper},workdir={work} {place}")
        self.put("/etc/rc.subr", (BASE / "rc.subr").read_bytes())
        self.put("/usr/sbin/daemon", (BASE / "daemon").read_bytes(), 0o755)
        (folder / "upper/var/log").mkdir(parents=True)
        setup.append(f"rm -f /var/run; ln -s /run /var/run; echo ready; exec python3 -c '{_INIT}'")
        words = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", "\n".join(setup)]
        self.init = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert self.init.stdout is not None
        if self.init.stdout.readline() != b"ready\n":
            leave_out("namespaces cannot be made here (root, overlayfs)")
        children = Path(f"/proc/{self.init.pid}/task/{self.init.pid}/children").read_text().split()
        self.pid = int(children[0])

    def _layers(self, place: str) -> tuple[Path, Path]:
        made = tuple(self.folder / kind / place.lstrip("/") for kind in ("upper", "work"))
        for one in made:
            one.mkdir(parents=True)
        return made[0], made[1]

    def put(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """A file in it, put there before it starts, or through its own eyes afterwards."""
        file = self.path(path) if hasattr(self, "pid") else self.folder / "upper" / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        file.chmod(mode)

    def path(self, path: str) -> Path:
        """Of a file in it, as this process sees it."""
        return Path(f"/proc/{self.pid}/root") / path.lstrip("/")

    def run(self, *words: str | Path, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Run in it; standard error and output apart."""
        return subprocess.run(
            ["nsenter", "-t", str(self.pid), "-m", "-p", "--", *map(str, words)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            env={"PATH": "/sbin:/bin:/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin"},
        )

    def sh(self, text: str, timeout: float = 60) -> str:
        """A line of shell in it that must work; what it says."""
        done = self.run("sh", "-c", text, timeout=timeout)
        assert done.returncode == 0, f"{text}: {done.stdout}{done.stderr}"
        return done.stdout

    def start(self, *words: str | Path) -> subprocess.Popen[bytes]:
        """Run in it and do not wait."""
        return subprocess.Popen(
            ["nsenter", "-t", str(self.pid), "-m", "-p", "--", *map(str, words)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def stop(self) -> None:
        """All of it."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self.init.wait()
        assert self.init.stdout is not None
        self.init.stdout.close()


@contextlib.contextmanager
def box() -> Iterator[Box]:
    """A fresh one."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        leave_out("namespaces need root")
    folder = Path(tempfile.mkdtemp(prefix="box-"))
    one = Box(folder)
    try:
        yield one
    finally:
        one.stop()
        shutil.rmtree(folder)


def quoted(*words: str | Path) -> str:
    """For `sh`."""
    return shlex.join(map(str, words))
