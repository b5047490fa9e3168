"""A real Postfix and a real Dovecot in a private folder on high ports, each listener with a plain twin."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import trustme

from kit.edge import until
from kit.servers import free_port

UID = 5000  # of the virtual mailboxes; no such user is needed
PASSWORD = "secret"  # of a mailbox in a folder that lives as long as the test

MAIN = """\
compatibility_level = 3.6
queue_directory = {folder}/spool
data_directory = {folder}/data
maillog_file = {folder}/mail.log
maillog_file_prefixes = {folder}
myhostname = mail.example.org
mydestination =
inet_interfaces = 127.0.0.1
inet_protocols = all
mynetworks = 127.0.0.0/8 [::1]/128
postscreen_access_list = permit_mynetworks
postscreen_cache_map =
smtpd_peername_lookup = no
smtpd_tls_cert_file = {folder}/server.pem
smtpd_tls_key_file = {folder}/server.pem
smtpd_tls_security_level = may
alias_maps =
virtual_mailbox_domains = example.org
virtual_mailbox_base = {folder}/home
virtual_mailbox_maps = inline:{{ {{bob@example.org = bob/Maildir/}} }}
virtual_uid_maps = static:{uid}
virtual_gid_maps = static:{uid}
"""

MASTER = """\
127.0.0.1:{smtp}              inet n - n - 1 postscreen -o postscreen_upstream_proxy_protocol=haproxy
127.0.0.1:{smtps}             inet n - n - - smtpd -o smtpd_tls_wrappermode=yes
  -o smtpd_upstream_proxy_protocol=haproxy -o syslog_name=postfix/smtps
127.0.0.1:{submission}        inet n - n - - smtpd
  -o smtpd_upstream_proxy_protocol=haproxy -o syslog_name=postfix/submission
127.0.0.1:{screen_plain}      inet n - n - 1 postscreen
127.0.0.1:{smtp_plain}        inet n - n - - smtpd -o syslog_name=postfix/plain
127.0.0.1:{submission_plain}  inet n - n - - smtpd -o syslog_name=postfix/plain-submission
smtpd     pass  - - n - - smtpd
dnsblog   unix  - - n - 0 dnsblog
tlsproxy  unix  - - n - 0 tlsproxy
pickup    unix  n - n 60 1 pickup
cleanup   unix  n - n - 0 cleanup
qmgr      unix  n - n 300 1 qmgr
tlsmgr    unix  - - n 1000? 1 tlsmgr
rewrite   unix  - - n - - trivial-rewrite
bounce    unix  - - n - 0 bounce
defer     unix  - - n - 0 bounce
trace     unix  - - n - 0 bounce
verify    unix  - - n - 1 verify
flush     unix  n - n 1000? 0 flush
proxymap  unix  - - n - - proxymap
proxywrite unix - - n - 1 proxymap
smtp      unix  - - n - - smtp
relay     unix  - - n - - smtp
showq     unix  n - n - - showq
error     unix  - - n - - error
retry     unix  - - n - - error
discard   unix  - - n - - discard
local     unix  - n n - - local
virtual   unix  - n n - - virtual
lmtp      unix  - - n - - lmtp
anvil     unix  - - n - 1 anvil
scache    unix  - - n - 1 scache
postlog   unix-dgram n - n - 1 postlogd
"""

DOVECOT = """\
base_dir = {folder}/dovecot
state_dir = {folder}/dovecot-state
log_path = {folder}/dovecot.log
listen = 127.0.0.1
protocols = imap pop3
ssl = required
ssl_cert = <{folder}/server.pem
ssl_key = <{folder}/server.pem
haproxy_trusted_networks = 127.0.0.0/8
mail_location = maildir:~/Maildir
passdb {{
  driver = static
  args = password={password}
}}
userdb {{
  driver = static
  args = uid={uid} gid={uid} home={folder}/home/%n allow_all_users=yes
}}
service imap-login {{
  inet_listener imap {{
    port = {imap}
    haproxy = yes
  }}
  inet_listener imap-plain {{
    port = {imap_plain}
  }}
  inet_listener imaps {{
    port = {imaps}
    ssl = yes
    haproxy = yes
  }}
  inet_listener imaps-plain {{
    port = {imaps_plain}
    ssl = yes
  }}
}}
service pop3-login {{
  inet_listener pop3 {{
    port = {pop3}
    haproxy = yes
  }}
  inet_listener pop3-plain {{
    port = {pop3_plain}
  }}
  inet_listener pop3s {{
    port = 0
  }}
}}
"""


@dataclass(frozen=True)
class MailHost:
    """Ports by service: smtp smtps submission imaps imap pop3, and *_plain beside them. All on 127.0.0.1."""

    folder: Path
    ports: dict[str, int]
    authority: trustme.CA

    @property
    def postfix_log(self) -> str:
        return (self.folder / "mail.log").read_text()

    @property
    def dovecot_log(self) -> str:
        return (self.folder / "dovecot.log").read_text()


def missing() -> list[str]:
    """The programs that are not here."""
    return [name for name in ("postfix", "dovecot") if shutil.which(name, path="/usr/sbin:/usr/local/sbin") is None]


@contextlib.contextmanager
def mail_host() -> Iterator[MailHost]:
    """Postfix and Dovecot, up and answering; both ended, by their own pids, at the end."""
    folder = Path(tempfile.mkdtemp(prefix="mail-"))
    names = ("smtp", "smtps", "submission", "imaps", "imap", "pop3")
    twins = ("screen_plain", "smtp_plain", "submission_plain", "imaps_plain", "imap_plain", "pop3_plain")
    host = MailHost(folder, {name: free_port() for name in (*names, *twins)}, trustme.CA())
    try:
        folder.chmod(0o755)
        certificate = host.authority.issue_cert("mail.example.org", "127.0.0.1", "::1", common_name="mail.example.org")
        certificate.private_key_and_cert_chain_pem.write_to_path(str(folder / "server.pem"))
        (folder / "server.pem").chmod(0o600)
        for name in ("etc", "spool", "data", "home", "dovecot", "dovecot-state"):
            (folder / name).mkdir()
        shutil.chown(folder / "data", "postfix")
        shutil.chown(folder / "home", UID, UID)
        with _postfix(host), _dovecot(host):
            yield host
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _postfix(host: MailHost) -> Iterator[None]:
    folder = host.folder
    (folder / "etc/main.cf").write_text(MAIN.format(folder=folder, uid=UID))
    (folder / "etc/master.cf").write_text(MASTER.format(**host.ports))
    with contextlib.ExitStack() as undo:
        started = subprocess.run(
            ["/usr/sbin/postfix", "-c", folder / "etc", "start"], capture_output=True, text=True, check=False
        )
        assert started.returncode == 0, started.stderr + started.stdout
        undo.callback(end_postfix, folder)
        until(lambda: "daemon started" in host.postfix_log, "Postfix")
        yield


@contextlib.contextmanager
def _dovecot(host: MailHost) -> Iterator[None]:
    folder = host.folder
    config = folder / "dovecot.conf"
    config.write_text(DOVECOT.format(folder=folder, uid=UID, password=PASSWORD, **host.ports))
    with (folder / "dovecot.out").open("wb") as out:
        process = subprocess.Popen(
            ["/usr/sbin/dovecot", "-F", "-c", config], stdin=subprocess.DEVNULL, stdout=out, stderr=out
        )
    try:
        until(lambda: (folder / "dovecot.log").exists() and "starting up" in host.dovecot_log, "Dovecot")
        yield
    finally:
        process.terminate()
        process.wait(timeout=20)


def end_postfix(folder: Path) -> None:
    """End the Postfix of this folder and all that it has started."""
    process = psutil.Process(int((folder / "spool/pid/master.pid").read_text()))
    children = process.children(recursive=True)
    process.send_signal(signal.SIGTERM)
    psutil.wait_procs([process, *children], timeout=20)
