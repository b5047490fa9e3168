"""From a file to a live HAProxy that tells the server who is calling: the real HAProxy, as a user sees it."""

from __future__ import annotations

import json
import os
import signal
import ssl
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from kit.edge import Edge, Load, connect, first_line, until
from kit.servers import echo, free_port
from kit.witness import Witness

from agent.desired.identity import digest_of


def one(port: int, *servers: object, frontend: dict | None = None, **backend: object) -> dict:
    """One frontend on 127.0.0.1:port, one backend of these echo servers."""
    pool = {server.name: {"address": server.address} for server in servers}
    return {
        "version": 1,
        "frontends": {"front": {"bind": [f"127.0.0.1:{port}"], "backend": "back", **(frontend or {})}},
        "backends": {"back": {"servers": pool, "health": {"interval": "100ms"}, **backend}},
    }


def test_four_frontends_and_a_client_from_127_0_0_77_is_seen_as_127_0_0_77(edge: Edge):
    with echo("a") as a, echo("b") as b:
        ports = [free_port("127.0.0.1", "::1") for _ in range(4)]
        state = one(ports[0], a, b)
        for port in ports[1:]:
            state["frontends"][f"f{port}"] = {"bind": [f"127.0.0.1:{port}", f"[::1]:{port}"], "backend": "back"}
        done = edge.apply(state)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("committed: generation 1 is live")
        for port in ports:
            assert first_line(port, source="127.0.0.77") in ("a PROXY 127.0.0.77", "b PROXY 127.0.0.77")
        assert first_line(ports[1], source="::1", host="::1").endswith(" PROXY ::1")


def test_the_same_again_changes_nothing_and_reloads_nothing(edge: Edge):
    with echo("a") as a:
        state = one(free_port(), a)
        edge.live(state)
        pid = edge.pid
        done = edge.apply(state)
        assert (done.returncode, done.stdout.split(":")[0]) == (0, "unchanged")
        # Other bytes, the same configuration: a generation of its own, the same process.
        done = edge.apply({**state, "name": "renamed", "serial": 7})
        assert done.stdout.startswith("unchanged: generation 2 is live")
        assert edge.pid == pid
        assert edge.agent("apply").stdout.startswith("unchanged: generation 2")


@pytest.mark.parametrize(("version", "seen"), [("v2", "PROXY 127.0.0.9"), ("v1", "PROXY 127.0.0.9"), ("none", "none")])
def test_proxy_protocol_v2_v1_and_none(edge: Edge, version: str, seen: str):
    with echo("a", header=version != "none") as a:
        edge.live(one(port := free_port(), a, proxy_protocol=version))
        assert first_line(port, source="127.0.0.9").startswith(f"a {seen}")
        if version == "none":  # without the header the server sees the firewall
            assert first_line(port, source="127.0.0.9") == "a none 127.0.0.1"


def test_the_agents_process_has_its_own_name(edge: Edge):
    with echo("a") as a:
        edge.live(one(free_port(), a))
        assert psutil.Process(edge.pid).name() == "edge-haproxy"
        same_name = subprocess.run(["pgrep", "-x", "haproxy"], capture_output=True, text=True, check=False)
        assert str(edge.pid) not in same_name.stdout.split()
        assert psutil.Process(edge.pid).exe() != str(edge.binary)


def test_the_link_is_renewed_when_the_binary_is_replaced(edge: Edge, tmp_path: Path):
    # A package upgrade renames a new file over the old one.
    folder = tmp_path / "bin"
    folder.mkdir()
    if (edge.binary.parent / "lib").is_dir():
        (folder / "lib").symlink_to(edge.binary.parent / "lib")
    binary = folder / "haproxy"
    binary.write_bytes(edge.binary.read_bytes())
    binary.chmod(0o755)
    haproxy = type(edge.haproxy)(
        binary=binary, process_name="edge-haproxy", state=edge.folder / "state", run=edge.folder / "run"
    )
    named = haproxy.named_binary()
    assert named.samefile(binary)
    fresh = folder / "fresh"
    fresh.write_bytes(edge.binary.read_bytes())
    fresh.chmod(0o755)
    fresh.replace(binary)
    assert not named.samefile(binary)
    assert haproxy.named_binary().samefile(binary)


def test_a_renamed_file_goes_live_without_a_failed_connection_and_sessions_live_on(edge: Edge):
    with echo("a") as a, echo("b") as b:
        edge.put(one(port := free_port(), a))
        edge.run()
        edge.wait("committed")
        with Load(port) as load, connect(port) as session, session.makefile("rw") as stream:
            assert stream.readline() == "a PROXY 127.0.0.1\n"
            edge.put(one(port, b))
            until(lambda: edge.status()["live"]["generation"] == 2, "generation 2")
            assert set(load.more(30)) == {"b PROXY 127.0.0.1"}
            stream.write("still here\n")
            stream.flush()
            assert stream.readline() == "still here\n"
        assert load.failures == []


def test_a_broken_file_touches_nothing_and_is_told_everywhere(edge: Edge):
    with echo("a") as a:
        state = one(port := free_port(), a)
        edge.put(state)
        edge.run()
        live = edge.wait("committed")["live"]
        pid = edge.pid
        broken = b"version: 1\nfrontends:\n  front: {bind: [nonsense], backend: back}\n"
        with Load(port) as load:
            edge.put(broken)
            status = edge.wait("invalid", digest_of(broken))
            load.more(10)
        assert load.failures == []
        assert (status["live"], edge.pid) == (live, pid)
        assert [(one["line"], one["path"]) for one in status["violations"]] == [
            (3, "frontends.front.backend"),
            (3, "frontends.front.bind[0]"),
        ]
        assert "frontends.front.bind[0]: expected an address" in edge.log
        shown = edge.agent("status")
        assert shown.returncode == 6
        assert shown.stdout.startswith("The desired state is not live: it is invalid: ")
        assert "last:    invalid" in shown.stdout
        assert "nonsense" in shown.stdout
        assert edge.agent("check", edge.desired).returncode == 3
        # And when it is mended, it goes on as if nothing had been.
        edge.put(state)
        edge.wait("unchanged")
        assert edge.pid == pid


def test_commands_are_undone_where_the_file_is_refused_and_no_client_notices(edge: Edge):
    """A template that writes nonsense beside a second server: `haproxy -c` says so while the commands are given."""
    template = (Path(__file__).parents[2] / "templates/haproxy.cfg.j2").read_text()
    own = edge.folder / "templates/haproxy.cfg.j2"
    broken = template.replace(
        "{% for server in backend.servers %}",
        "{% if backend.servers | length > 1 %}\n    nonsense\n{% endif %}\n{% for server in backend.servers %}",
    )
    assert broken != template
    own.write_text(broken)
    with echo("a") as a, echo("b") as b:
        edge.live(one(port := free_port(), a))
        pid, before = edge.pid, (edge.folder / "state/haproxy.cfg").read_bytes()
        with Witness(port) as witness:
            done = edge.apply(one(port, a, b))
            assert done.returncode == 4, done.stderr
            assert "unknown keyword 'nonsense'" in done.stderr
            edge.live(one(port, a))
        assert witness.failures == []
        assert edge.pid == pid
        assert (edge.folder / "state/haproxy.cfg").read_bytes() == before
        assert [server.name for server in edge.haproxy.observe().servers if server.backend == "back"] == ["a"]
        assert not (edge.folder / "state/journal.json").exists()


def test_a_process_whose_frontends_have_no_prefix_is_known_and_replaced_without_a_loss(edge: Edge):
    """As an agent before the prefix started it; HAProxy 3.2 warns of the shared name, 3.3 refuses it."""
    template = (Path(__file__).parents[2] / "templates/haproxy.cfg.j2").read_text()
    own = edge.folder / "templates/haproxy.cfg.j2"
    own.write_text(template.replace("{{ frontend.name }}", '{{ frontend.name | replace("fe:", "") }}'))
    with echo("a") as a, echo("b") as b:
        edge.live(one(port := free_port(), a))
        assert "\nfrontend fe:" not in (edge.folder / "state/haproxy.cfg").read_text()
        edge.serve()
        until(lambda: [front["state"] for front in edge.status()["frontends"]] == ["up"], "it is seen")
        own.unlink()
        with Witness(port) as witness:
            edge.live(one(port, b))
            until(lambda: any(line.startswith("b") for line in witness.greetings), "the new state serves")
        assert witness.failures == []
        assert "\nfrontend fe:" in (edge.folder / "state/haproxy.cfg").read_text()
        until(lambda: [front["state"] for front in edge.status()["frontends"]] == ["up"], "it is seen")


def test_what_haproxy_itself_refuses_is_refused_with_its_words(edge: Edge):
    with echo("a") as a:
        edge.live(one(port := free_port(), a))
        pid, before = edge.pid, (edge.folder / "state/haproxy.cfg").read_bytes()
        (edge.folder / "templates/haproxy.cfg.j2").write_text(
            'global\n  description "{{ description }}"\n  unheard of\n'
        )
        done = edge.apply(one(port, a, balance="random"))
        assert done.returncode == 4
        assert "unknown keyword 'unheard' in 'global' section" in done.stderr
        assert done.stdout.startswith("refused: generation 1 is live")
        assert (edge.pid, (edge.folder / "state/haproxy.cfg").read_bytes()) == (pid, before)
        assert first_line(port).startswith("a PROXY")
        plan = edge.agent("plan")
        assert plan.returncode == 4


def test_a_broken_template_is_invalid_with_its_line(edge: Edge):
    with echo("a") as a:
        (edge.folder / "templates/haproxy.cfg.j2").write_text("global\n{% for line in nothing %}\n")
        done = edge.apply(one(free_port(), a))
        assert done.returncode == 3
        assert f"{edge.folder}/templates/haproxy.cfg.j2:2: " in done.stderr
        (edge.folder / "templates/haproxy.cfg.j2").write_text("global\n\n{{ missing }}\n")
        done = edge.agent("apply")
        assert done.returncode == 3
        assert f"{edge.folder}/templates/haproxy.cfg.j2:3: UndefinedError: 'missing' is undefined" in done.stderr


def test_a_process_that_would_die_after_saying_yes_is_found_out_before(root: None, edge: Edge):
    """facts.md, HAProxy 3: with a chroot that is not there, -c passes and -sf -x exits 0."""
    with echo("a") as a:
        edge.live(one(port := free_port(), a))
        pid, before = edge.pid, (edge.folder / "state/haproxy.cfg").read_bytes()
        source = Path(__file__).parents[2] / "templates/haproxy.cfg.j2"
        bad = source.read_text().replace("global\n", "global\n    chroot /nonexistent/edge\n", 1)
        (edge.folder / "templates/haproxy.cfg.j2").write_text(bad)
        with Load(port) as load:
            done = edge.apply(one(port, a, balance="random"))
            load.more(10)
        assert load.failures == []
        assert (done.returncode, done.stdout.split(":")[0]) == (4, "refused")
        assert "a process that starts with it ends (exit 1)" in done.stderr
        assert "/nonexistent/edge" in done.stderr
        assert (edge.pid, (edge.folder / "state/haproxy.cfg").read_bytes()) == (pid, before)
        assert not (edge.folder / "state/hold.json").exists()
        assert not (edge.folder / "run/r").exists()
        (edge.folder / "templates/haproxy.cfg.j2").unlink()
        assert edge.agent("apply").returncode == 0


def test_sigterm_leaves_haproxy_serving_and_a_start_adopts_it_without_a_reload(edge: Edge):
    with echo("a") as a:
        edge.put(one(port := free_port(), a))
        service = edge.run()
        edge.wait("committed")
        pid = edge.pid
        service.send_signal(signal.SIGTERM)
        assert service.wait(timeout=10) == 0
        assert "HAProxy goes on serving" in edge.log
        assert first_line(port).startswith("a PROXY")
        assert edge.agent("status").returncode == 7
        edge.run()
        edge.wait("unchanged")
        assert edge.pid == pid
        assert edge.agent("status").returncode == 0


def test_sighup_looks_now(edge: Edge):
    edge.configure(f'[haproxy]\nbinary = "{edge.binary}"\nmaxconn = 500\n[apply]\nresync = "1h"')
    with echo("a") as a:
        edge.put(one(free_port(), a))
        service = edge.run()
        edge.wait("committed")
        # What no watch can see: the template changes.
        text = (Path(__file__).parents[2] / "templates/haproxy.cfg.j2").read_text()
        (edge.folder / "templates/haproxy.cfg.j2").write_text(text + "\n# another template\n")
        service.send_signal(signal.SIGHUP)
        until(lambda: edge.status()["live"]["generation"] == 2, "generation 2")


def test_haproxy_that_was_killed_comes_back_with_what_was_live(edge: Edge):
    with echo("a") as a:
        edge.put(one(port := free_port(), a))
        edge.run()
        edge.wait("committed")
        pid = edge.pid
        os.kill(pid, signal.SIGKILL)
        until(lambda: (running := edge.haproxy.running()) and running.pid != pid, "a new HAProxy")
        assert first_line(port).startswith("a PROXY")


def test_haproxy_that_was_killed_comes_back_even_if_the_desired_state_is_broken(edge: Edge):
    with echo("a") as a:
        edge.put(one(port := free_port(), a))
        edge.run()
        edge.wait("committed")
        edge.put(b"version: [")
        edge.wait("invalid")
        os.kill(edge.pid, signal.SIGKILL)
        until(lambda: first_line_or_refused(port), "service again")
        assert edge.status()["outcome"] == "invalid"


def first_line_or_refused(port: int) -> str:
    try:
        return first_line(port)
    except ConnectionRefusedError:
        return ""


def test_apply_beside_a_running_agent_waits_its_turn(edge: Edge):
    with echo("a") as a, echo("b") as b:
        edge.put(one(port := free_port(), a))
        edge.run()
        edge.wait("committed")
        done = edge.apply(one(port, b))
        assert (done.returncode, done.stdout.split(":")[0]) == (0, "committed")
        assert first_line(port).startswith("b PROXY")
        edge.wait("unchanged")  # the agent looked after it, and found nothing left to do
        assert len(edge.agent("history").stdout.splitlines()) == 3


def test_apply_waits_for_whoever_has_the_lock(one_edge: Edge):
    from agent.host.store import Store

    with echo("a") as a:
        store = Store(one_edge.folder / "state", one_edge.folder / "run")
        store.prepare()
        with store.lock(waiting=lambda _: None):
            waiting = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "agent",
                    "--settings",
                    one_edge.settings,
                    "apply",
                    one_edge.file(one(free_port(), a)),
                ],
                stderr=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            assert waiting.stderr.readline() == b"waiting for another change to finish\n"
            assert waiting.poll() is None
            assert not one_edge.desired.exists()
        assert waiting.wait(timeout=20) == 0
        waiting.stderr.close()
        waiting.stdout.close()


def test_an_invalid_file_is_not_taken_as_the_desired_state(one_edge: Edge):
    with echo("a") as a:
        one_edge.live(one(free_port(), a))
        before = one_edge.desired.read_bytes()
        done = one_edge.apply({"version": 1, "frontends": {"x": {}}})
        assert done.returncode == 3
        assert "frontends.x: the key `bind` is missing" in done.stderr
        assert one_edge.desired.read_bytes() == before


def test_plan_tells_and_touches_nothing(edge: Edge):
    with echo("a") as a, echo("b") as b:
        edge.live(one(port := free_port(), a))
        before = {path: path.read_bytes() for path in (edge.folder / "state").rglob("*") if path.is_file()}
        pid = edge.pid
        with connect(port):
            until(lambda: edge.haproxy.observe().frontends[0].sessions == 1, "a session")
            done = edge.agent("plan", "--json", edge.file(one(port, b)))
            reload = edge.agent("plan", "--json", edge.file(one(port, b, balance="first")))
        told = json.loads(done.stdout)
        assert (told["plan"], told["sessions"]) == ("runtime", 0)
        assert told["reasons"] == ["server back/a removed", "server back/b added"]
        assert told["commands"] == [
            f"add server back/b {b.address} weight 1 send-proxy-v2 check inter 100ms rise 2 fall 3",
            "enable health back/b",
            "set server back/b state ready",
            "set server back/a state maint",
        ]
        assert f"+    server b {b.address} weight 1 send-proxy-v2 check" in told["diff"]
        text = edge.agent("plan", edge.file(one(port, b))).stdout
        assert "  - server back/b added\n" in text
        assert "  > set server back/a state maint\n" in text
        told = json.loads(reload.stdout)
        assert (told["plan"], told["sessions"], told["commands"]) == ("reload", 1, [])
        assert told["reasons"][0] == "backend back changed: balance"
        assert edge.agent("plan").stdout.startswith("No change")
        assert {path: path.read_bytes() for path in (edge.folder / "state").rglob("*") if path.is_file()} == before
        assert edge.pid == pid


def test_plan_needs_no_folders_and_makes_none(one_edge: Edge):
    with echo("a") as a:
        done = one_edge.agent("plan", one_edge.file(one(free_port(), a)))
        assert done.returncode == 0, done.stderr
        assert not (one_edge.folder / "state").exists()
        assert not (one_edge.folder / "run").exists()


def test_history_and_status_as_json(edge: Edge):
    with echo("a") as a:
        state = one(port := free_port(), a)
        edge.live({**state, "serial": 4})
        edge.live({**one(port, a, balance="first"), "serial": 5})
        history = json.loads(edge.agent("history", "--json").stdout)
        assert [(one["number"], one["serial"], one["outcome"]) for one in history] == [
            (1, 4, "committed"),
            (2, 5, "committed"),
        ]
        assert history[1]["reasons"] == ["backend back changed: balance"]
        done = edge.agent("status", "--json")
        status = json.loads(done.stdout)
        assert (done.returncode, status["schema"], status["live"]["generation"]) == (7, 1, 2)
        assert status["haproxy"]["pid"] == edge.pid
        (front,) = status["frontends"]
        assert front["binds"] == [{"address": f"127.0.0.1:{port}", "state": "listening", "reason": ""}]
        assert (front["state"], front["servers_up"], front["servers_total"]) == ("up", 1, 1)


def test_an_agent_that_dies_between_switch_and_commit_is_finished_by_the_next(edge: Edge):
    with echo("a") as a, echo("b") as b:
        edge.live(one(port := free_port(), a))
        # What a kill at that moment leaves: the generation staged, its process in place, nothing committed.
        edge.live(one(port, b, balance="first"))
        generations = edge.folder / "state/generations"
        (generations / "000002").rename(generations / "000002.staged")
        (edge.folder / "state/journal.json").write_text('{"before": 1, "after": 2}')
        pid = edge.pid
        done = edge.agent("apply")
        assert done.stdout.startswith("unchanged: generation 2 is live")
        assert edge.pid == pid
        assert not (edge.folder / "state/journal.json").exists()
        assert "finished after the agent was interrupted" in edge.agent("history").stdout


def test_an_agent_that_dies_before_the_switch_leaves_the_old_generation(edge: Edge):
    with echo("a") as a, echo("b") as b:
        edge.live(one(free_port(), a))
        before = (edge.folder / "state/haproxy.cfg").read_bytes()
        staged = edge.folder / "state/generations/000002.staged"
        staged.mkdir()
        (staged / "haproxy.cfg").write_bytes(b"half")
        (edge.folder / "state/haproxy.cfg").write_bytes(before.replace(a.address.encode(), b.address.encode()))
        (edge.folder / "state/journal.json").write_text('{"before": 1,')
        pid = edge.pid
        assert edge.agent("apply").stdout.startswith("unchanged: generation 1 is live")
        assert ((edge.folder / "state/haproxy.cfg").read_bytes(), edge.pid) == (before, pid)
        assert not staged.exists()
        assert not (edge.folder / "state/journal.json").exists()


def test_dead_servers_stay_dead_over_a_reload_and_moved_ones_are_looked_at_anew(edge: Edge):
    """facts.md, HAProxy 5: without the server-state file, dead servers get traffic until their first check."""
    dead = free_port()
    with echo("a") as a, echo("other") as other:
        state = one(port := free_port(), a)
        state["backends"]["back"]["servers"]["dead"] = {"address": f"127.0.0.1:{dead}"}
        edge.live(state)
        until(lambda: _server(edge, "dead").status == "DOWN", "the dead server is known")
        # A reload with the longest interval: whatever the new process knows at once, it was told.
        state["backends"]["back"]["health"] = {"interval": "1h"}
        edge.live(state)
        assert _server(edge, "dead").status == "DOWN"
        assert {first_line(port) for _ in range(10)} == {"a PROXY 127.0.0.1"}
        state["backends"]["back"]["servers"]["dead"] = {"address": other.address}
        state["defaults"] = {"maxconn": 99}
        edge.live(state)
        assert _server(edge, "dead").up


def _server(edge: Edge, name: str):
    return next(server for server in edge.haproxy.observe().servers if server.name == name)


def test_sni_routes(edge: Edge, tmp_path: Path):
    import trustme

    authority = trustme.CA()
    with echo("named") as named, echo("below") as below, echo("any") as other, echo("none") as nameless:
        pools = {
            name: {"servers": {"a": {"address": server.address}}, "health": {"type": "none"}}
            for name, server in {"named": named, "below": below, "any": other, "none": nameless}.items()
        }
        state = {
            "version": 1,
            "frontends": {
                "tls": {
                    "bind": [f"127.0.0.1:{(port := free_port())}"],
                    "backend": "none",
                    "routes": [
                        {"sni": ["fw.example.org", "FIREWALL.example.org"], "backend": "named"},
                        {"sni": ["*.apps.example.org"], "backend": "below"},
                        {"sni": ["*"], "backend": "any"},
                    ],
                }
            },
            "backends": pools,
        }
        edge.live(state)

        def reached(name: str | None) -> str:
            """Say hello with this name; the echo server's greeting tells which one it is."""
            incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            authority.configure_trust(context)
            hello = context.wrap_bio(incoming, outgoing, server_hostname=name)
            with pytest.raises(ssl.SSLWantReadError):
                hello.do_handshake()
            with connect(port) as one:
                one.sendall(outgoing.read())
                return one.recv(100).split()[0].decode()

        assert reached("fw.example.org") == "named"
        assert reached("firewall.EXAMPLE.org") == "named"
        assert reached("x.apps.example.org") == "below"
        assert reached("apps.example.org") == "any"
        assert reached(None) == "none"
        with connect(port) as plain:  # not TLS at all: no name, and no waiting for one
            start = time.monotonic()
            plain.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert plain.recv(100).startswith(b"none PROXY")
            assert time.monotonic() - start < 4  # of the 5 s of inspect-delay


def test_allow_deny_and_rate_limit(edge: Edge):
    with echo("a") as a:
        front = {"allow": ["127.0.0.0/24", "127.0.1.0/24"], "deny": ["127.0.0.66"]}
        edge.live(one(port := free_port(), a, frontend=front))
        assert first_line(port, source="127.0.0.7")
        assert first_line(port, source="127.0.1.7")
        assert not first_line(port, source="127.0.0.66")
        assert not first_line(port, source="127.0.2.7")
        edge.live(one(port, a, frontend={"rate_limit": {"connections": 3, "period": "1h"}}))
        assert [bool(first_line(port, source="127.0.0.7")) for _ in range(5)] == [True, True, True, False, False]
        assert first_line(port, source="127.0.0.8")


def test_behind_an_outer_proxy_the_header_says_who_is_allowed_and_who_is_counted(edge: Edge):
    def through(port: int, client: str) -> str:
        with connect(port) as one, one.makefile("r") as stream:
            one.sendall(f"PROXY TCP4 {client} 192.0.2.1 1234 25\r\n".encode())
            try:
                return stream.readline().strip()
            except ConnectionResetError:
                return ""

    with echo("a") as a:
        front = {"accept_proxy": True, "deny": ["203.0.113.66"], "rate_limit": {"connections": 2, "period": "1h"}}
        edge.live(one(port := free_port(), a, frontend=front))
        assert through(port, "203.0.113.7") == "a PROXY 203.0.113.7"
        assert through(port, "203.0.113.66") == ""
        assert through(port, "203.0.113.7") == "a PROXY 203.0.113.7"
        assert through(port, "203.0.113.7") == ""
        assert through(port, "203.0.113.8") == "a PROXY 203.0.113.8"


@pytest.mark.parametrize(
    ("health", "on", "command"),
    [
        ({}, "data", "LOCAL"),
        ({"send_proxy": False}, "data", "none"),
        ({"port": ...}, "check", "none"),
        ({"port": ..., "send_proxy": True}, "check", "LOCAL"),
    ],
)
def test_checks_carry_a_header_exactly_where_they_should(edge: Edge, health: dict, on: str, command: str):
    """facts.md, HAProxy 8.

    A check without a header is ended with a reset before its handshake is over (M: HAProxy on Linux), so that the
    server's program never sees it: only HAProxy tells that it passed.
    """
    with echo("a") as a, echo("check") as check:
        health = {key: check.port if value is ... else value for key, value in health.items()}
        edge.live(one(free_port(), a, health={"interval": "50ms", **health}))
        asked = a if on == "data" else check
        until(lambda: _server(edge, "a").check == "L4OK", "a check that passed")
        if command == "LOCAL":
            until(lambda: len(asked.seen) >= 3, "three checks")
            assert set(asked.commands()) == {"LOCAL"}
        else:
            assert asked.seen == []
        assert (a if asked is check else check).seen == []


def test_an_https_check_with_a_path_a_host_and_a_status(edge: Edge, tmp_path: Path):
    import threading
    from http.server import BaseHTTPRequestHandler, HTTPServer

    import trustme

    asked = []

    class Ready(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append((self.path, self.headers["Host"]))
            self.send_response(204 if self.path == "/readyz" else 500)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("api.example.org").configure_cert(context)
    edge.configure(f'[haproxy]\nbinary = "{edge.binary}"\nmaxconn = 500\nca_file = "{tmp_path}/ca.pem"')
    with echo("a") as a, HTTPServer(("127.0.0.1", 0), Ready) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        health = {"type": "http", "path": "/readyz", "host": "api.example.org", "status": 204, "tls": True,
                  "verify": True, "port": server.server_address[1], "interval": "100ms"}  # fmt: skip
        edge.live(one(port := free_port(), a, health=health))
        until(lambda: _server(edge, "a").check == "L7OK", "the check passes")
        assert set(asked) == {("/readyz", "api.example.org")}
        edge.live(one(port, a, health={**health, "status": "200-299"}))
        assert edge.apply(one(port, a, health={**health, "status": "205-299"})).returncode == 5
        done = edge.apply(one(port, a, health={**health, "host": "other.example.org"}))
        assert (done.returncode, done.stdout.split(":")[0]) == (5, "rolled_back"), done.stderr
        assert "no server of backend back does: a UP 2/3 L6RSP" in done.stderr  # the certificate of another name
        assert _server(edge, "a").status == "UP"
        server.shutdown()
        thread.join()


def test_no_desired_state_yet_is_said_and_waited_for(edge: Edge):
    edge.run()
    status = edge.wait("invalid")
    assert status["live"] is None
    assert "there is no such file" in status["message"]
    with echo("a") as a:
        edge.put(one(port := free_port(), a))
        edge.wait("committed")
        assert first_line(port).startswith("a PROXY")


def test_a_deleted_desired_state_leaves_what_is_live(edge: Edge):
    with echo("a") as a:
        edge.put(one(port := free_port(), a))
        edge.run()
        edge.wait("committed")
        pid = edge.pid
        edge.desired.unlink()
        edge.wait("invalid")
        assert (edge.pid, first_line(port)) == (pid, "a PROXY 127.0.0.1")


def test_an_empty_state_serves_nothing_and_stays_manageable(edge: Edge):
    with echo("a") as a:
        edge.live(one(port := free_port(), a))
        done = edge.apply({"version": 1, "allow_empty": True})
        assert done.returncode == 0
        assert "no frontend: nothing will be served" in done.stderr
        with pytest.raises(ConnectionRefusedError):
            connect(port)
        edge.live(one(port, a))
        assert first_line(port).startswith("a PROXY")


def test_two_services_on_one_folder_take_turns(one_edge: Edge):
    with echo("a") as a:
        one_edge.put(one(free_port(), a))
        first = one_edge.run()
        one_edge.wait("committed")
        one_edge.run()
        until(lambda: "waiting for pid" in one_edge.log, "the second waits")
        first.kill()
        first.wait()
        until(
            lambda: one_edge.log.count("HAProxy ") >= 2 and one_edge.status()["outcome"] == "unchanged", "it takes over"
        )
