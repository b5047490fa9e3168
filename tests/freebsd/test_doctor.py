"""Doctor: each finding with its remedy, by what FreeBSD's tools print. Their texts are written after their manuals."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from kit.edge import Edge, first_line, until
from kit.servers import echo, free_port
from kit.sockstat import RELEASES, Row

from agent import settings
from agent.desired.schema import DesiredState
from agent.desired.state import parse
from agent.host import listeners, sockstat
from agent.host.haproxy_process import HAProxy
from agent.tools import basetools, checks, doctor
from agent.tools.basetools import Address, Redirect
from agent.tools.checks import Found, Scene

SAID = Path(__file__).parent / "said"
LISTENING = [
    Row("www", 80, "edge-haproxy", 4321, 5, "tcp4", "10.0.20.1:25"),
    Row("www", 80, "edge-haproxy", 4321, 6, "tcp6", "2001:db8:1::2:25"),
    Row("root", 0, "nginx", 22107, 5, "tcp4", "*:443"),
    Row("root", 0, "nginx", 22107, 6, "tcp6", "*:443"),
    Row("www", 80, "haproxy", 777, 4, "tcp4", "10.0.20.1:6443"),
    Row("root", 0, "sshd", 911, 4, "tcp46", "*:22"),
]


def said(name: str) -> str:
    return (SAID / f"{name}.txt").read_text()


def desired(*binds: str) -> DesiredState:
    document = {
        "version": 1,
        "frontends": {f"f{n}": {"bind": [bind], "backend": "b"} for n, bind in enumerate(binds)},
        "backends": {"b": {"servers": {"a": {"address": "192.0.2.9:25"}}}},
    }
    return parse(json.dumps(document).encode(), file="d").state


class Host:
    """A pfSense, as its tools tell of it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.answers = {
            "mount -p": said("mount-p"),
            "pkg info": said("pkg-info"),
            "pfctl -sn": said("pfctl-sn"),
            "edge-haproxy -vv": said("haproxy-vv-2.8"),
        }
        self.binary = root / "usr/local/sbin/haproxy"
        self.binary.parent.mkdir(parents=True)
        self.binary.write_bytes(b"")
        self.binary.chmod(0o755)
        text = f'[paths]\ndesired = "{root}/d"\nstate = "{root}/s"\nrun = "/nonexistent/r"\n'
        self.text = f'{text}[haproxy]\nbinary = "{self.binary}"\n'

    def ask(self, words: Sequence[str]) -> str:
        return self.answers.get(" ".join([Path(words[0]).name, *words[1:]]), "")

    def scene(self, *binds: str, more: str = "") -> Scene:
        return Scene(
            settings=settings.parse((self.text + more).encode(), "agent.toml"),
            ask=self.ask,
            root=self.root,
            listening=tuple(sockstat.listeners(RELEASES["14"](LISTENING, wide=True, numeric=True))),
            state=desired(*binds) if binds else None,
            addresses=basetools.addresses(said("ifconfig-14")),
            now=time.time(),
        )


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path / "root")


def found(scene: Scene, what: str) -> list[Found]:
    every = list(checks.checked(scene))
    for one in every:
        assert one.level in ("ok", "note", "look", "broken")
        assert one.remedy or one.level not in ("look", "broken"), one
    return [one for one in every if one.what == what]


# --- what the tools print


@pytest.mark.parametrize("release", ["14", "15"])
def test_addresses_and_their_carp_state(release: str):
    addresses = basetools.addresses(said(f"ifconfig-{release}"))
    virtual = [address for address in addresses if address.vhid is not None]
    assert virtual == [
        Address(address="10.0.20.1", interface="igc1", vhid=3, carp="MASTER"),
        Address(address="2001:db8:1::2", interface="igc1", vhid=4, carp="BACKUP"),
    ]
    assert {address.address for address in addresses} >= {"203.0.113.5", "10.0.20.2", "::1", "127.0.0.1"}


def test_redirects_of_pfctl():
    told = basetools.redirects(said("pfctl-sn"))
    assert told == (
        Redirect(interface="igc0", to="203.0.113.5", ports=(25, 25), targets=("10.0.20.1",)),
        Redirect(
            interface="igc0", to="203.0.113.5", ports=(465, 465), targets=("10.0.20.203",), target_ports=(30126, 30126)
        ),
        Redirect(interface="igc0", to="203.0.113.5", ports=(587, 587), targets=("10.0.20.1",), target_ports=(587, 587)),
        Redirect(
            interface="igc0", to="203.0.113.5", ports=(993, 993), targets=("<workers>",), target_ports=(30128, 30128)
        ),
        Redirect(interface="igc0", to="203.0.113.5", ports=(8000, 8100), targets=("10.0.20.9",)),
    )
    assert basetools.unread_redirects(said("pfctl-sn")) == 0


# As print_rule() puts it together: action, log, interface, family, protocol, from and to, label, tag, pool.
@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (
            ('rdr on igc0 inet proto tcp from any to 203.0.113.5 port = smtp label "USER_RULE: mail -> edge" '
            "ridentifier 1700000000 -> 10.0.20.1"),
            Redirect(interface="igc0", to="203.0.113.5", ports=(25, 25), targets=("10.0.20.1",)),
        ),
        (
            ("rdr pass log (all, to pflog1) on ! igc0 inet6 proto tcp from <bogons> port > 1023 to ! 2001:db8::5 "
            "port 8000:8100 tag EDGE tagged IN -> 2001:db8:1::2 port 9000:9100"),
            Redirect(
                interface="! igc0", to="! 2001:db8::5", ports=(8000, 8100), targets=("2001:db8:1::2",),
                target_ports=(9000, 9100),
            ),
        ),
        (
            ("rdr on igc0 inet proto tcp from any to (igc0) port = imaps -> { 10.0.20.1, 10.0.20.2 } port 993 "
            "round-robin sticky-address"),
            Redirect(
                interface="igc0", to="(igc0)", ports=(993, 993), targets=("10.0.20.1", "10.0.20.2"),
                target_ports=(993, 993),
            ),
        ),
        (
            "rdr on igc0 inet proto tcp from any to any port >= 1024 -> 10.0.20.8/30 source-hash 0x0123456789abcdef",
            Redirect(interface="igc0", to="any", ports=(1024, 65535), targets=("10.0.20.8/30",)),
        ),
        (
            "rdr on igc0 inet proto tcp all -> 10.0.20.1 - 10.0.20.4 random",
            Redirect(interface="igc0", to="any", ports=(0, 65535), targets=("10.0.20.1 - 10.0.20.4",)),
        ),
        (
            "rdr inet from any to 203.0.113.5 -> 10.0.20.9",
            Redirect(interface="any interface", to="203.0.113.5", ports=(0, 65535), targets=("10.0.20.9",)),
        ),
    ],
)  # fmt: skip
def test_every_part_of_a_redirect(rule: str, expected: Redirect):
    assert basetools.redirects(f"{rule}\n") == (expected,)
    assert basetools.unread_redirects(rule) == 0


def test_what_a_redirect_says_that_cannot_be_read_is_counted():
    assert basetools.unread_redirects("rdr on igc0 proto tcp from any to any port != smtp -> 10.0.20.9\n") == 1
    assert basetools.unread_redirects("rdr on igc0 proto udp from any to any port != smtp -> 10.0.20.9\n") == 0
    assert basetools.redirects('no rdr on igc0 proto tcp all\nrdr-anchor "x" all\n') == ()


def test_where_a_port_of_a_range_leads():
    rule = Redirect(interface="x", to="any", ports=(8000, 8100), targets=("a",), target_ports=(9000, 9050))
    assert [rule.target_port(port) for port in (8000, 8050, 8051)] == [9000, 9050, 9000]


def test_builds_and_packages_and_file_systems():
    built = basetools.build(said("haproxy-vv-2.8"))
    assert built is not None
    assert (built.version, built.exporter, "KQUEUE" in built.features) == ("2.8.3-86e043a", True, True)
    assert basetools.build("sh: not found") is None
    assert basetools.packages(said("pkg-info"))["pfSense-pkg-haproxy"] == "0.63_2"
    assert dict(basetools.file_systems(said("mount-p")))["/var/db"] == "md"


# --- what is made of it


def test_frontends_and_who_is_in_their_way(host: Host):
    scene = host.scene("10.0.20.1:25", "10.0.20.1:443", "10.0.20.1:6443", "127.0.0.1:1")
    assert found(scene, "frontend f0") == []  # ours holds it
    (taken,) = found(scene, "frontend f2")
    assert (taken.level, "is held by haproxy (pid 777)" in taken.message) == ("look", True)
    (beside,) = found(scene, "frontend f1")  # ours is not there yet, and would take the address from the web GUI
    assert (beside.level, "10.0.20.1:443 is held by nginx (pid 22107)" in beside.message) == ("look", True)
    (gui,) = found(scene, "web GUI")
    assert ("listens on 443" in gui.message, "8443" in gui.remedy) == (True, True)
    (absent,) = found(host.scene("10.0.20.77:25"), "frontend f0")
    assert ("does not have the address" in absent.message, "virtual IP" in absent.remedy) == (True, True)


def test_the_names_that_sockstat_cuts_are_known(host: Host):
    """The system prints ten letters of a name (kit/sockstat.py): ours is ours all the same."""
    assert found(host.scene("10.0.20.1:25"), "frontend f0") == []


def test_nat_that_leads_past_haproxy(host: Host):
    told = found(host.scene("10.0.20.1:25", "10.0.20.1:465", "10.0.20.1:587", "10.0.20.1:993"), "NAT")
    assert [one.level for one in told] == ["look", "look", "ok"]
    assert "port 465 of 203.0.113.5 on igc0 goes to 10.0.20.203, past HAProxy" in told[0].message
    assert "<workers>" in told[1].message
    assert told[2].message.startswith("2 redirects")


def test_carp_and_the_haproxy_package(host: Host):
    told = found(host.scene("10.0.20.1:25", "[2001:db8:1::2]:25"), "CARP")
    assert [(one.level, "MASTER" in one.message) for one in told] == [("ok", True), ("note", False)]
    (package,) = found(host.scene(), "haproxy package")
    assert "0.63_2" in package.message
    assert "10.0.20.1:6443" in package.message


def test_haproxy_itself(host: Host):
    (one,) = found(host.scene(), "haproxy")
    assert (one.level, "2.8.3" in one.message) == ("ok", True)
    host.answers["edge-haproxy -vv"] = said("haproxy-vv-1.8")
    assert found(host.scene(), "haproxy")[0].level == "look"
    host.answers["edge-haproxy -vv"] = "no"
    (odd,) = found(host.scene(), "haproxy")
    assert odd.level == "broken"
    host.binary.unlink()
    (gone,) = found(host.scene(), "haproxy")
    assert gone.level == "broken"


def test_the_link_to_the_binary(host: Host):
    assert found(host.scene(), "process name")[0].level == "note"
    host.binary.write_bytes(b"first")
    named = HAProxy(
        binary=host.binary, process_name="edge-haproxy", state=host.root / "s", run=host.root / "r"
    ).named_binary()
    assert found(host.scene(), "process name")[0].level == "ok"
    host.binary.unlink()
    host.binary.write_bytes(b"upgraded")
    host.binary.chmod(0o755)
    assert "was upgraded" in found(host.scene(), "process name")[0].message
    assert named.read_bytes() == b"first"


def test_folders(host: Host):
    host.answers["mount -p"] = "/dev/gpt/pfsense0\t/\t\tufs\trw\t\t1 1\n"
    assert found(host.scene(), "state folder")[0].level == "note"
    (host.root / "s").mkdir(mode=0o700)
    assert found(host.scene(), "state folder")[0].level == "ok"
    (host.root / "s").chmod(0o777)
    (open_to_all,) = found(host.scene(), "state folder")
    assert (open_to_all.level, "chmod 700" in open_to_all.remedy) == ("look", True)
    (host.root / "s").chmod(0o700)
    host.answers["mount -p"] += f"tmpfs {host.root} tmpfs rw 0 0\n"
    assert "is lost at a reboot" in found(host.scene(), "state folder")[0].message


def test_limits_clock_and_signers(host: Host):
    assert found(host.scene(more="maxconn = 10\n"), "file limit")[0].level == "ok"
    assert found(host.scene(more="maxconn = 90000000\n"), "file limit")[0].level == "look"
    assert found(host.scene(), "clock")[0].level == "ok"
    (signers,) = found(host.scene(more=f'[sync]\nallowed_signers = "{host.root}/nobody"\n'), "signers")
    assert signers.level == "broken"


def test_keys_and_the_service(host: Host):
    assert found(host.scene(), "gate")[0].level == "note"
    keys = host.root / "home/_sync/.ssh/authorized_keys"
    keys.parent.mkdir(parents=True)
    keys.write_text('restrict,command="/usr/local/bin/agent gate" ssh-ed25519 A\n')
    assert found(host.scene(), "gate")[0].level == "ok"
    keys.write_text('command="/usr/local/bin/agent gate" ssh-ed25519 A\n')
    assert [one.level for one in found(host.scene(), "gate")] == ["look", "ok"]
    script = host.root / "usr/local/etc/rc.d/edgeagent"
    script.parent.mkdir(parents=True)
    script.touch()
    assert found(host.scene(), "boot")[0].level == "look"
    conf = host.root / "usr/local/etc/rc.conf.d/edgeagent"
    conf.parent.mkdir()
    conf.write_text('edgeagent_enable="YES"\n')
    assert found(host.scene(), "boot")[0].level == "ok"


@pytest.mark.parametrize(
    ("options", "level"),
    [
        ('restrict,command="agent gate"', "ok"),
        ('command="agent gate",restrict', "ok"),
        ('from="10.0.0.0/8,192.0.2.1",restrict,command="/usr/local/bin/agent gate"', "ok"),
        ('restrict,port-forwarding,command="agent gate"', "look"),
        ('command="agent gate restrict,"', "look"),
    ],
)
def test_whether_a_key_may_forward(host: Host, options: str, level: str):
    keys = host.root / "root/.ssh/authorized_keys"
    keys.parent.mkdir(parents=True)
    keys.write_text(f"{options.replace('gate restrict,', 'gate')} ssh-ed25519 A restrict,x\n")
    assert found(host.scene(), "gate")[0].level == level


RC_CONF, LOCAL, OWN = "etc/rc.conf", "etc/rc.conf.local", "usr/local/etc/rc.conf.d/edgeagent"
DEFAULTS, OF_ETC = "etc/defaults/rc.conf", "etc/rc.conf.d/edgeagent"


# In the order of load_rc_config() (libexec/rc/rc.subr, 0227451304a7): /etc/rc.conf; /etc/rc.conf.local where
# /etc/defaults/rc.conf names it; then rc.conf.d/NAME, a file or a folder of files, of /etc and of /usr/local/etc.
@pytest.mark.parametrize(
    ("files", "level"),
    [
        ({RC_CONF: 'edgeagent_enable="YES"'}, "ok"),
        ({RC_CONF: 'edgeagent_enable="YES"', OWN: 'edgeagent_enable="NO"'}, "look"),
        ({RC_CONF: 'edgeagent_enable="YES"', DEFAULTS: "", LOCAL: 'edgeagent_enable="NO"'}, "look"),
        ({RC_CONF: 'edgeagent_enable="YES"', LOCAL: 'edgeagent_enable="NO"'}, "ok"),  # nothing names that file
        ({OF_ETC: 'edgeagent_enable="NO"', OWN: 'edgeagent_enable="YES"'}, "ok"),
        ({f"{OWN}/10-first": 'edgeagent_enable="NO"', f"{OWN}/20-then": 'edgeagent_enable="YES"'}, "ok"),
        ({f"{OWN}/10-first": 'edgeagent_enable="YES"', f"{OWN}/20-then": 'edgeagent_enable="NO"'}, "look"),
        ({OWN: 'edgeagent_enable="YES"\nedgeagent_enable="NO"'}, "look"),
        ({OWN: "edgeagent_enable='YES'"}, "ok"),
        ({OWN: 'edgeagent_enable="YES" # mail edge'}, "ok"),
        ({OWN: 'other=1; edgeagent_enable="YES"'}, "ok"),
        ({OWN: "export edgeagent_enable=YES"}, "ok"),
        ({OWN: "#edgeagent_enable=YES"}, "look"),
        ({}, "look"),
    ],
)
@pytest.mark.parametrize("system", ["FreeBSD", "pfSense"])
def test_whether_it_starts_at_boot(host: Host, files: dict[str, str], level: str, system: str):
    boots = {"usr/local/etc/rc.d/edgeagent.sh": ""} if system == "pfSense" else {}
    for name, text in {"usr/local/etc/rc.d/edgeagent": "", **boots, **files}.items():
        file = host.root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    assert found(host.scene(), "boot")[0].level == level


@pytest.mark.parametrize(
    ("rule", "levels"),
    [
        ("to 203.0.113.5 port = smtp -> 10.0.20.9", ["look"]),
        ("to ! 203.0.113.5 port = smtp -> 10.0.20.9 port 25", ["look"]),
        ("to any port 20:30 -> 10.0.20.9", ["look"]),
        ("to any port 20:30 -> 10.0.20.1", ["ok"]),
        ("to any port 10020:10030 -> 10.0.20.1 port 20:30", ["ok"]),
        ("to any port 10020:10030 -> 10.0.20.9 port 20:30", ["look"]),
        ("to any port = smtp -> { 10.0.20.1, 10.0.20.9 } round-robin", ["look"]),
        ("to any port = imaps -> 10.0.20.9", []),
        ("to any -> 10.0.20.9", ["look"]),
    ],
)
def test_which_redirects_lead_past_haproxy(host: Host, rule: str, levels: list[str]):
    host.answers["pfctl -sn"] = f"rdr on igc0 inet proto tcp from any {rule}\n"
    assert [one.level for one in found(host.scene("10.0.20.1:25"), "NAT")] == levels


def test_a_redirect_of_an_unknown_shape_is_a_note(host: Host):
    host.answers["pfctl -sn"] = "rdr something new\n"
    assert "1 redirects were not understood" in found(host.scene("10.0.20.1:25"), "NAT")[0].message


def test_a_check_that_fails_is_a_finding(host: Host, monkeypatch: pytest.MonkeyPatch):
    def broken(_: object) -> None:
        raise ValueError("odd")

    monkeypatch.setattr(listeners, "unbound", broken)
    assert any("cannot be looked at: odd" in one.message for one in checks.checked(host.scene("10.0.20.77:25")))


@pytest.mark.parametrize(
    ("levels", "code"), [([], 0), (["ok", "note"], 0), (["ok", "look"], 6), (["look", "broken", "ok"], 4)]
)
def test_exit_codes(levels: list[str], code: int):
    assert doctor.exit_code([Found(level=level, what="x", message="y") for level in levels]) == code


def test_a_host_where_all_is_well_and_one_where_it_is_not(one_edge: Edge):
    web, port = free_port(), free_port()
    one_edge.configure(f'[haproxy]\nbinary = "{one_edge.binary}"\nmaxconn = 500\n[metrics]\nlisten = "127.0.0.1:{web}"')
    with echo("a") as backend:
        document = {
            "version": 1,
            "frontends": {"f": {"bind": [f"127.0.0.1:{port}"], "backend": "b"}},
            "backends": {"b": {"servers": {"a": {"address": backend.address}}}},
        }
        one_edge.put(document)
        one_edge.serve()
        until(lambda: (one_edge.status() or {}).get("outcome") == "committed", "it is live")
        assert first_line(port)
        for name in ("state", "run"):
            (one_edge.folder / name).chmod(0o700)
        done = one_edge.agent("doctor")
        assert done.returncode == 0, done.stdout
        assert done.stdout.endswith("All is well.\n")
        told = json.loads(one_edge.agent("doctor", "--json").stdout)
        levels = {one["what"]: one["level"] for one in told["findings"]}
        assert (told["exit_code"], levels["stats socket"], levels["metrics"]) == (0, "ok", "ok")
        taken = free_port()
        with socket.create_server(("127.0.0.1", taken)):
            document["frontends"]["f"]["bind"] = [f"127.0.0.1:{taken}"]
            one_edge.put(document)
            done = one_edge.agent("doctor")
            assert done.returncode == 6
            assert f"127.0.0.1:{taken} is held by" in done.stdout
            assert f"(pid {os.getpid()})" in done.stdout
        os.kill(one_edge.services[0].pid, 15)
        one_edge.services[0].wait()
        os.kill(one_edge.pid, 9)
        done = one_edge.agent("doctor")
        assert (done.returncode, "no HAProxy answers" in done.stdout) == (4, True)
    one_edge.settings.write_text("[paths]\nnonsense = 1\n")
    done = one_edge.agent("doctor")
    assert (done.returncode, "nonsense" in done.stdout) == (4, True)
