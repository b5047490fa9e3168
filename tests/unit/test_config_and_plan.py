"""Rendering, planning, server state: pure functions, exact results."""

from __future__ import annotations

import json
from pathlib import PurePosixPath

import pytest
from kit.fakes import servers_of
from kit.states import state

from agent.desired.scalars import duration, milliseconds
from agent.desired.schema import DesiredState
from agent.desired.state import parse
from agent.errors import InvalidError, RefusedError
from agent.haproxy import server_state
from agent.haproxy.config import CONFIG_TEMPLATE, Config, Process, Template, quoted, render
from agent.haproxy.observed import Running
from agent.haproxy.plan import LiveGeneration, Plan, Reload, Target, Unchanged, changes, diff, plan
from agent.host import templates

PROCESS = Process(
    socket=PurePosixPath("/run/s"), server_state=PurePosixPath("/run/st"), maxconn=100, hard_stop_after=900_000
)
BUILT_IN = templates.load(CONFIG_TEMPLATE, "")


def of(document: object) -> DesiredState:
    return parse(json.dumps(document).encode(), file="d").state


def wanted(document: object, digest: str = "new") -> Target:
    return Target(digest=digest, state=of(document), config=render(of(document), PROCESS, BUILT_IN))


def committed(document: object, number: int = 7, loaded: int = 7, digest: str = "old") -> LiveGeneration:
    config = render(of(document), PROCESS, BUILT_IN).stamped(digest=digest, generation=number)
    return LiveGeneration(number=number, loaded=loaded, digest=digest, config=config, state=of(document))


def running(generation: int | None = 7) -> Running:
    return Running(pid=1, version="2.8", uptime=1, generation=generation)


def planned(before: LiveGeneration, process: Running, target: Target) -> Plan:
    """The plan where the servers of the process are those of its file."""
    return plan(before, process, target, servers=servers_of(before.config.decode()).values())


def test_nothing_to_do_when_the_same_configuration_is_committed_and_running():
    assert planned(committed(state(a=1)), running(), wanted(state(a=1), "old")) == Unchanged(new_generation=False)


def test_another_document_of_the_same_configuration_is_recorded_only():
    renamed = {**state(a=1), "name": "other", "serial": 9}
    assert planned(committed(state(a=1)), running(), wanted(renamed)) == Unchanged(new_generation=True)


def test_a_generation_that_was_recorded_only_is_carried_by_the_process_of_an_older_one():
    live = committed(state(a=1), number=9, loaded=7)
    for generation in (7, 9):
        assert planned(live, running(generation), wanted(state(a=1), "old")) == Unchanged(new_generation=False)


@pytest.mark.parametrize(
    ("before", "process", "reasons"),
    [
        (None, None, ("HAProxy is not running", "nothing is live yet")),
        (None, running(None), ("nothing is live yet",)),
        (committed(state(a=1)), None, ("HAProxy is not running",)),
        (committed(state(a=1)), running(6), ("HAProxy runs generation 6; generation 7 is committed",)),
        (
            committed(state(a=1)),
            running(None),
            ("HAProxy runs a file without a generation; generation 7 is committed",),
        ),
    ],
)
def test_reasons_to_reload_that_are_not_in_the_document(before, process, reasons):
    assert plan(before, process, wanted(state(a=1))) == Reload(reasons=reasons)


def test_another_template_or_other_settings_are_a_reason():
    other = Process(
        socket=PurePosixPath("/run/s"), server_state=PurePosixPath("/run/st"), maxconn=99, hard_stop_after=900_000
    )
    target = Target(digest="old", state=of(state(a=1)), config=render(of(state(a=1)), other, BUILT_IN))
    assert plan(committed(state(a=1)), running(), target) == Reload(reasons=("the settings or the template changed",))


def test_changes_are_told_a_sentence_each_in_the_order_of_the_file():
    before, after = state(gone=1, kept=2, pool=1), state(kept=2, new=1, pool=1)
    before["frontends"]["kept"]["bind"] = ["192.0.2.9:9"]
    after["frontends"]["kept"] |= {"maxconn": 5, "bind": ["192.0.2.9:10"]}
    for one in (before, after):
        one["frontends"]["pool"] = {"bind": ["192.0.2.9:11"], "backend": "pool"}
    servers = after["backends"]["kept"]["servers"]
    servers["b"] = {"address": "198.51.100.99:1", "weight": 3}
    servers["c"] = servers.pop("a")
    for one in (before, after):
        one["backends"]["pool"]["servers"]["a"]["address"] = "198.51.100.50:1"
    after["backends"]["pool"] |= {"balance": "first"}
    after["backends"]["pool"]["servers"]["a"]["disabled"] = True
    after["defaults"] = {"maxconn": 9}
    assert changes(of(before), of(after)) == [
        "defaults changed",
        "frontend gone removed",
        "frontend kept changed: bind, maxconn",
        "frontend new added",
        "backend gone removed",
        "server kept/a removed",
        "server kept/b moved from 198.51.100.2:2001 to 198.51.100.99:1, changed: weight",
        "server kept/c added",
        "backend new added",
        "backend pool changed: balance",
        "server pool/a changed: disabled",
    ]


def test_the_difference_is_a_unified_diff_of_the_files():
    text = diff(committed(state(a=1)), wanted(state(a=2)).config.stamped(digest="new", generation=8), number=8)
    assert text.startswith("--- haproxy.cfg (generation 7)\n+++ haproxy.cfg (generation 8)\n@@ ")
    assert "\n+    server b 198.51.100.2:2000 weight 1 send-proxy-v2 check" in text


# --- rendering


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("global\n    maxconn 5\n", None, 'must keep `description "{{ description }}"`'),
        ("global\n\n{% if %}\n", 3, "Expected an expression"),
        ("global\n{{ nothing }}\n", 2, "UndefinedError: 'nothing' is undefined"),
        ("global\n\n\n{{ 1 / 0 }}\n", 4, "ZeroDivisionError: division by zero"),
        ("{% for f in frontends %}\n{{ f.nothing }}\n{% endfor %}", 2, "UndefinedError"),
        ("{% include 'x' %}{% include 'x' %}" + "{" * 3, 1, ""),
    ],
)
def test_a_broken_template_is_an_invalid_input_with_its_line(text, line, message):
    with pytest.raises(InvalidError) as caught:
        render(of(state(a=1)), PROCESS, Template(file="/etc/t/haproxy.cfg.j2", text=text))
    (violation,) = caught.value.violations
    assert (caught.value.file, violation.line) == ("/etc/t/haproxy.cfg.j2", line)
    assert message in violation.message


def test_paths_are_one_word_of_haproxy_cfg():
    assert quoted("/var/run/edgeagent/haproxy.sock") == "/var/run/edgeagent/haproxy.sock"
    assert quoted('/a b/c#d"$e') == "'/a b/c#d\"$e'"


def test_certificates_cannot_be_verified_without_authorities():
    document = state(a=1)
    document["backends"]["a"]["health"] = {"type": "tls", "verify": True}
    with pytest.raises(RefusedError, match="no bundle of certificate authorities") as caught:
        render(of(document), PROCESS, BUILT_IN)
    assert caught.value.remedy == "set haproxy.ca_file in agent.toml"


def test_stamping_changes_the_names_and_nothing_else():
    config = render(of(state(a=1)), PROCESS, BUILT_IN)
    one, other = config.stamped(digest="x" * 8, generation=1), config.stamped(digest="y" * 8, generation=2)
    assert one != other
    assert one.replace(b"x" * 8, b"y" * 8).replace(b"generation 1", b"generation 2") == other
    assert isinstance(config, Config)


@pytest.mark.parametrize(
    ("text", "amount", "back"),
    [("25ms", 25, "25ms"), ("1000ms", 1_000, "1s"), ("90s", 90_000, "90s"), ("60m", 3_600_000, "1h")],
)
def test_durations_are_milliseconds_and_are_written_in_their_largest_unit(text, amount, back):
    assert milliseconds(text) == amount
    assert duration(amount) == back


# --- server state

HEAD = "1\n# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight\n"


def line(pool: str, name: str, operational: int, admin: int = 0, weight: int = 1, initial: int = 1) -> str:
    return f"3 {pool} 1 {name} 198.51.100.1 {operational} {admin} {weight} {initial}\n"


def test_what_is_still_the_same_server_is_carried_over_and_nothing_else():
    before, after = of(state(kept=3, gone=1)), state(kept=3, new=1)
    after["backends"]["kept"]["servers"]["b"]["address"] = "198.51.100.77:1"
    after["backends"]["kept"]["servers"]["c"]["weight"] = 9
    dump = HEAD + line("kept", "a", 0) + line("kept", "b", 0) + line("kept", "c", 2) + line("gone", "a", 0) + "\n"
    assert server_state.carried(dump, before, of(after)) == "1\n" + line("kept", "a", 0) + line(
        "kept", "c", 2, weight=9, initial=9
    )


def test_without_knowing_what_it_was_nothing_is_carried_over():
    assert server_state.carried(HEAD + line("kept", "a", 0), None, of(state(kept=1))) == "1\n"


def test_a_weight_that_was_set_by_hand_stays_and_one_that_the_document_had_does_not():
    """HAProxy restores the weight where the initial one is that of the file (M: all three)."""
    before, after = state(kept=2), state(kept=2)
    before["backends"]["kept"]["servers"]["a"]["weight"] = 0  # by a document that is being put back
    after["backends"]["kept"]["servers"]["a"]["weight"] = 10
    dump = line("kept", "a", 2, weight=0, initial=10) + line("kept", "b", 2, weight=77, initial=5)
    assert server_state.carried(dump, of(before), of(after)) == "1\n" + line(
        "kept", "a", 2, weight=10, initial=10
    ) + line("kept", "b", 2, weight=77, initial=1)


def test_a_server_without_a_check_stays_down_until_it_has_answered_and_never_for_another_check():
    unchecked = state(kept=3)
    unchecked["backends"]["kept"]["health"] = {"type": "none"}
    dump = line("kept", "a", 0) + line("kept", "b", 0, admin=1) + line("kept", "c", 0)
    # The operator's maintenance is kept as well.
    assert server_state.carried(dump, of(unchecked), of(unchecked), reached={("kept", "c")}) == "1\n" + line(
        "kept", "a", 0
    ) + line("kept", "b", 0, admin=1) + line("kept", "c", 2)
    assert server_state.carried(line("kept", "a", 0), of(state(kept=1)), of(unchecked)) == "1\n" + line("kept", "a", 2)


def test_a_server_that_is_enabled_again_is_looked_at_anew():
    disabled = state(kept=1)
    disabled["backends"]["kept"]["servers"]["a"]["disabled"] = True
    assert server_state.carried(HEAD + line("kept", "a", 0, admin=5), of(disabled), of(state(kept=1))) == "1\n"
