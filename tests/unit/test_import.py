"""What people have becomes a desired state; what it cannot express is told, each line."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
import yaml
from attrs import evolve
from click.testing import Result
from kit.command import invoke

from agent.desired.state import parse
from agent.errors import InvalidError
from agent.tools.importer import command as importing

WORKED = Path(__file__).parents[1] / "golden/pfsense.xml"


# In front of a text that says nothing of timeouts; its own lines keep their numbers.
FOREVER = "defaults\n timeout connect 5s\n timeout client 1h\n timeout server 1h\n"


def imported(text: str) -> importing.Translation:
    first = "" if "<" in text[:1] or " timeout" in text else FOREVER
    found = importing.convert((first + text).encode(), "haproxy.cfg")
    found.left = [evolve(one, place=f"haproxy.cfg:{one.number - first.count(chr(10))}") for one in found.left]
    return found


def left(found: importing.Translation) -> list[str]:
    return [str(one) for one in found.left]


def run(file: Path) -> Result:
    return invoke("import", str(file))


def test_the_worked_deployment_out_of_a_config_xml():
    done = run(WORKED)
    assert done.exit_code == 6, done.output
    state = parse(done.stdout.encode(), file="d").state
    mail = {"smtp": (25, 30125, 30145), "smtps": (465, 30126, 30146)}
    mail |= {"submission": (587, 30127, 30146), "imaps": (993, 30128, 30147)}
    frontends = {frontend.name: frontend for frontend in state.frontends}
    backends = {backend.name: backend for backend in state.backends}
    assert set(frontends) == {*mail, "https", "kubernetes"}
    assert set(backends) == {*mail, "webgui", "traefik", "kubernetes"}
    for name, (port, to, check) in mail.items():
        assert [str(one) for one in frontends[name].bind] == [f"10.0.20.1:{port}", f"[2001:db8:1::2]:{port}"]
        pool = backends[name]
        assert {str(server.address) for server in pool.servers} == {f"10.0.20.10{n}:{to}" for n in (1, 2, 3, 4)}
        assert (pool.health.port, pool.health.interval, pool.proxy_protocol) == (check, 5_000, "v2")
    assert frontends["smtp"].maxconn == 500
    https = frontends["https"]
    routes = [(list(route.sni), route.backend) for route in https.routes]
    assert routes == [(["pfsense.example.lan", "fw.example.lan"], "webgui"), (["*"], "traefik")]
    assert https.backend == "webgui"
    assert (backends["traefik"].health.type, backends["traefik"].proxy_protocol) == ("none", "v2")
    assert (backends["webgui"].health.type, backends["webgui"].proxy_protocol) == ("tcp", "none")
    kubernetes = backends["kubernetes"].health
    assert (kubernetes.type, kubernetes.path, kubernetes.tls, kubernetes.status) == ("http", "/readyz", True, "200")
    told = done.stderr
    for word in (
        "Old Web: mode http",
        "disabled unused",
        "server spare: inactive",
        "dontlognull",
    ):
        assert word in told, word
        assert word in done.stdout, word


HEAD = f"{FOREVER}backend b\n server a 192.0.2.9:25 check\n"

CASES: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "a listen section is both": (
        "listen mail\n bind 192.0.2.1:25\n balance leastconn\n server a 192.0.2.9:25 send-proxy\n",
        {
            "frontends": {"mail": {"bind": ["192.0.2.1:25"], "backend": "mail"}},
            "backends": {
                "mail": {
                    "application": "smtp",
                    "balance": "leastconn",
                    "proxy_protocol": "v1",
                    "servers": {"a": {"address": "192.0.2.9:25"}},
                    "health": {"type": "none"},
                }
            },
        },
        [],
    ),
    "every spelling of an address": (
        (
            f"{HEAD}frontend f\n bind *:25,192.0.2.1:26 name x\n bind :::27 v4v6\n bind ipv4@192.0.2.1:28\n"
            " bind 192.0.2.1:1-5\n bind mail:25\n bind 192.0.2.1:29 ssl crt /x\n bind /tmp/x\n default_backend b\n"
        ),
        {
            "frontends": {
                "f": {"bind": ["0.0.0.0:25", "192.0.2.1:26", "[::]:27", "0.0.0.0:27", "192.0.2.1:28"], "backend": "b"}
            }
        },
        ["no single address", "no single address", "TLS ends behind", "no single address"],
    ),
    "names by acl": (
        (
            f"{HEAD}frontend f\n bind 192.0.2.1:443\n tcp-request inspect-delay 5s\n acl x req_ssl_sni -i a.org\n"
            " acl x req.ssl_sni -i -m end .b.org\n"
            " acl y req.ssl_sni -m reg ^c\n use_backend b if x\n use_backend b if y\n use_backend b if x !y\n"
            " use_backend b if !x\n use_backend b if x or { req.ssl_sni -i d.org }\n default_backend b\n"
        ),
        {
            "frontends": {
                "f": {
                    "bind": ["192.0.2.1:443"],
                    "routes": [
                        {"sni": ["a.org", "*.b.org"], "backend": "b"},
                        {"sni": ["a.org", "*.b.org", "d.org"], "backend": "b"},
                    ],
                    "backend": "b",
                }
            }
        },
        ["only names by SNI", "if y", "if x !y", "if !x"],
    ),
    "sources": (
        (
            f"{HEAD}frontend f\n bind 192.0.2.1:25\n acl bad src 198.51.100.0/24 198.51.101.7\n"
            " tcp-request connection reject if bad\n tcp-request connection reject if !{ src 203.0.113.0/24 }\n"
            " default_backend b\n"
        ),
        {
            "frontends": {
                "f": {
                    "bind": ["192.0.2.1:25"],
                    "deny": ["198.51.100.0/24", "198.51.101.7"],
                    "allow": ["203.0.113.0/24"],
                    "backend": "b",
                }
            }
        },
        [],
    ),
    "servers by default-server": (
        (
            "backend b\n default-server check inter 2s send-proxy-v2\n server a 192.0.2.9:25 port 26 weight 5 backup\n"
            " server b 192.0.2.10:25 port 26 no-check\n server c 192.0.2.11:25 port 26 maxconn 7\n"
            " server d mail.example.org:25\n server e 192.0.2.12:25 port 27\n"
        ),
        {
            "backends": {
                "b": {
                    "servers": {
                        "a": {"address": "192.0.2.9:25", "weight": 5, "backup": True},
                        "b": {"address": "192.0.2.10:25"},
                        "c": {"address": "192.0.2.11:25"},
                        "d": {"address": "mail.example.org:25"},
                        "e": {"address": "192.0.2.12:25"},
                    },
                    "health": {"port": 26, "interval": "2s", "timeout": "2s"},
                }
            }
        },
        [
            "its check is another",
            "maxconn, 7",
            "its check is another",
            "its check is another",
        ],
    ),
    "timeouts of each": (
        (
            "defaults\n timeout client 30000\n timeout connect 5s\n timeout server 1m\n timeout tarpit 5s\n"
            "frontend f\n bind 192.0.2.1:25\n default_backend b\n"
            "frontend g\n bind 192.0.2.1:26\n timeout client 5m\n default_backend c\n"
            "frontend h\n bind 192.0.2.1:27\n default_backend d\n"
            "backend b\n server a 192.0.2.9:25\n"
            "backend c\n timeout server 2m\n timeout connect 2147483647\n server a 192.0.2.9:25\n"
            "backend d\n timeout tunnel 1h\n server a 192.0.2.9:25\n"
            "backend unused\n timeout connect 10m\n server a 192.0.2.9:25\n"
        ),
        {
            "defaults": {"timeouts": {"connect": "5s", "client": "30s", "server": "1m"}},
            "frontends": {
                "f": {"bind": ["192.0.2.1:25"], "backend": "b"},
                "g": {"bind": ["192.0.2.1:26"], "backend": "c", "timeouts": {"client": "5m"}},
                "h": {"bind": ["192.0.2.1:27"], "backend": "d", "timeouts": {"client": "1h"}},
            },
            "backends": {
                "b": {
                    "application": "smtp",
                    "proxy_protocol": "none",
                    "servers": {"a": {"address": "192.0.2.9:25"}},
                    "health": {"type": "none"},
                },
                "c": {
                    "proxy_protocol": "none",
                    "servers": {"a": {"address": "192.0.2.9:25"}},
                    "health": {"type": "none"},
                    "timeouts": {"connect": "596h", "server": "2m"},
                },
                "d": {
                    "proxy_protocol": "none",
                    "servers": {"a": {"address": "192.0.2.9:25"}},
                    "health": {"type": "none"},
                    "timeouts": {"server": "1h"},
                },
            },
        },
        ["timeout tarpit", "longer than a desired state can say", "no imported frontend leads to it"],
    ),
    "names that may not be": (
        (
            "backend My_Pool\n server a 192.0.2.9:25\nbackend my_pool\n server A_1 192.0.2.9:25\n"
            " server ümlaut 192.0.2.9:26\n"
        ),
        {
            "backends": {
                "my_pool": {
                    "servers": {"a": {"address": "192.0.2.9:25"}},
                    "proxy_protocol": "none",
                    "health": {"type": "none"},
                },
                "my_pool-2": {
                    "proxy_protocol": "none",
                    "servers": {"a_1": {"address": "192.0.2.9:25"}, "mlaut": {"address": "192.0.2.9:26"}},
                    "health": {"type": "none"},
                },
            }
        },
        ["is called my_pool now", "is called my_pool-2 now", "is called a_1 now", "is called mlaut now"],
    ),
    "what is not TCP, and sections of other kinds": (
        (
            f"{HEAD}frontend web\n mode http\n bind :80\n redirect scheme https\nresolvers r\n"
            f" nameserver a 192.0.2.53:53\n"
        ),
        {"frontends": {}},
        [
            "no imported frontend leads to it",
            "mode http: the agent forwards TCP",
            "mode http",
            "bind :80",
            "redirect",
            "resolvers r",
            "nameserver",
        ],
    ),
    "what HAProxy itself would not take": (
        (
            f"{HEAD}stray words\nfrontend f\n bind 192.0.2.1:25\n server\n bind\n use_backend\n"
            f" acl\n timeout\n"
            ' log "unfinished\n default_backend nowhere\n'
        ),
        {"frontends": {"f": {"bind": ["192.0.2.1:25"], "backend": "nowhere"}}},
        [
            "no imported frontend leads to it",
            "stray words",
            "backend nowhere is not here",
            "server",
            "bind",
            "use_backend",
            "acl",
            "timeout",
            "log",
        ],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_haproxy_cfg(name: str):
    text, wanted, told = CASES[name]
    found = imported(text)
    for key, value in wanted.items():
        assert found.document[key] == value
    assert len(found.left) == len(told), left(found)
    for one, word in zip(left(found), told, strict=True):
        assert word in one


def test_nothing_is_dropped_without_a_word():
    """Every line of a file is expressed, or told, by its number."""
    lines = ["frontend f", " bind 192.0.2.1:25", " default_backend b", "backend b", " server a 192.0.2.9:25"]
    for number, odd in enumerate(
        ("option tcplog", "unique-id-format x", "capture request header x len 5", "stats enable")
    ):
        with_it = [*lines[: 2 + number % 2], f" {odd}", *lines[2 + number % 2 :]]
        (one,) = imported("\n".join(with_it)).left
        assert (one.place, one.text) == (f"haproxy.cfg:{3 + number % 2}", odd)


def fields(frontend: str = "", pool: str = "", server: str = "", rest: str = "") -> str:
    return (
        f"<pfsense>{rest}<installedpackages><haproxy><ha_backends><item><name>f</name><status>active</status>"
        f"<type>tcp</type>{frontend}<backend_serverpool>b</backend_serverpool></item></ha_backends><ha_pools><item>"
        f"<name>b</name><check_type>none</check_type>{pool}<ha_servers><item><name>a</name><status>active</status>"
        f"<address>192.0.2.9</address><port>25</port>{server}</item></ha_servers></item></ha_pools></haproxy>"
        "</installedpackages></pfsense>"
    )


def bound(address: str, port: str = "25") -> str:
    return f"<a_extaddr><item><extaddr>{address}</extaddr><extaddr_port>{port}</extaddr_port></item></a_extaddr>"


@pytest.mark.parametrize(
    ("address", "wanted"),
    [
        ("any_ipv4", "0.0.0.0:25"),
        ("localhost_ipv6", "[::1]:25"),
        ("lan_ipv4", "192.0.2.1:25"),
        ("lan_ipv6", "[2001:db8::1]:25"),
        ("_vip5f", "192.0.2.7:25"),
        ("192.0.2.8", "192.0.2.8:25"),
    ],
)
def test_addresses_of_interfaces_and_virtual_ips(address: str, wanted: str):
    rest = (
        "<interfaces><lan><ipaddr>192.0.2.1</ipaddr><ipaddrv6>2001:db8::1</ipaddrv6></lan>"
        "<wan><ipaddr>dhcp</ipaddr></wan></interfaces>"
        "<virtualip><vip><uniqid>5f</uniqid><subnet>192.0.2.7</subnet></vip></virtualip>"
    )
    found = imported(fields(bound(address), rest=rest))
    assert found.document["frontends"]["f"]["bind"] == [wanted]
    told = left(imported(fields(bound("wan_ipv4"), rest=rest)))
    assert any("bind <wan_ipv4>:25" in one and "interface wan_ipv4 has no static address" in one for one in told)


def test_fields_of_the_package_that_nothing_here_knows_are_told():
    found = imported(
        fields(
            f"{bound('192.0.2.1', '25,26')}<forwardfor>yes</forwardfor>",
            "<persist_cookie_enabled>yes</persist_cookie_enabled><advanced>!!</advanced>",
            "<cookie>x</cookie><ssl>yes</ssl><advanced>send-proxy-v2-ssl</advanced>",
        )
    )
    assert found.document["frontends"] == {}  # nobody knows what stood in <advanced>
    told = " ".join(left(found))
    for word in (
        "<forwardfor>yes",
        "<persist_cookie_enabled>yes",
        "no base64",
        "<cookie>x",
        "ssl: not known here",
        "send-proxy-v2-ssl: a v2 header",
    ):
        assert word in told, word


def test_a_shared_frontend_stands_in_its_primary():
    acl = (
        "<ha_acls><item><name>x</name><expression>ssl_sni_matches</expression><value>a.org</value></item></ha_acls>"
        "<a_actionitems><item><action>use_backend</action><use_backendbackend>b</use_backendbackend><acl>x</acl></item>"
        "</a_actionitems>"
    )
    second = (
        "</item><item><name>g</name><status>active</status><type>tcp</type><secondary>yes</secondary>"
        f"<primary_frontend>f</primary_frontend>{acl}"
    )
    found = imported(fields(f"{bound('192.0.2.1', '443')}<backend_serverpool>b</backend_serverpool>{second}"))
    assert list(found.document["frontends"]) == ["f"]
    assert found.document["frontends"]["f"]["routes"] == [{"sni": ["a.org"], "backend": "b"}]


def test_a_haproxy_cfg_and_what_the_package_would_write_are_one():
    typed = base64.b64encode(b"option tcp-check\r\nhash-type consistent\r\n").decode()
    pool = f"<advanced_backend>{typed}</advanced_backend><balance>source</balance><checkinter>2000</checkinter>"
    found = imported(fields(bound("192.0.2.1"), pool.replace("none", "Basic")))
    assert found.document["backends"]["b"]["balance"] == "source"
    assert found.left == []


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"", "no frontend, backend or listen"),
        (b"<a/>", "the haproxy package has nothing in it"),
        (b"<a>", "no element found"),
        (b"<!DOCTYPE a [<!ENTITY b 'c'>]><a>&b;</a>", "document type"),
        (b"<!DOCTYPE a SYSTEM 'file:///etc/passwd'><a/>", "document type"),
        (b"\xff\xfe\x00", "neither XML nor text"),
        (b"<a>" * 100, "nested deeper"),
    ],
)
def test_what_is_neither_is_refused(tmp_path: Path, data: bytes, word: str):
    file = tmp_path / "x.xml"
    file.write_bytes(data)
    done = run(file)
    assert (done.exit_code, word in done.stderr) == (3, True), done.stderr
    with pytest.raises(InvalidError):
        importing.convert(data, "x.xml")


def test_what_is_not_valid_yet_is_printed_and_said(tmp_path: Path):
    file = tmp_path / "haproxy.cfg"
    file.write_text("frontend f\n bind 192.0.2.1:25\n default_backend nowhere\n")
    done = run(file)
    assert done.exit_code == 3
    assert yaml.safe_load(done.stdout)["frontends"]["f"]["backend"] == "nowhere"
    assert "mend these by hand" in done.stderr
    assert run(tmp_path / "nobody").exit_code == 2


def test_no_line_of_a_file_becomes_a_line_of_the_state(tmp_path: Path):
    file = tmp_path / "config.xml"
    file.write_text(fields(bound("192.0.2.1"), "<odd>x\nversion: 9\n\u2028y</odd>"))
    done = run(file)
    assert done.exit_code == 6
    assert yaml.safe_load(done.stdout)["version"] == 1


FRONT = f"{HEAD}frontend f\n bind 192.0.2.1:25\n default_backend b\n"

# What would let in clients that are turned away now, were it dropped or taken for something else: the frontend is left
# out.
CLOSING = (
    (
        " tcp-request connection reject unless { src 10.0.0.0/8 }\n"
        " tcp-request connection reject unless { src 10.1.0.0/16 }"
    ),
    " acl x src -f /etc/list\n tcp-request connection reject unless x",
    " acl from_ipv6 src -m sub :\n acl ok src 10.0.0.0/8\n tcp-request connection reject unless ok from_ipv6",
    " tcp-request connection reject if { src ::/0 }",
    " tcp-request connection reject if { src ::ffff:10.0.0.1 }",
    " tcp-request connection reject unless { src 10.0.0.5/0.0.0.255 }",
    " tcp-request connection reject if { src 10.0.0.1 } { dst_port 25 }",
    " tcp-request connection reject unless !{ src 10.0.0.1 } or !{ src 10.0.0.2 }",
    " tcp-request connection silent-drop if { src 10.0.0.1 }",
    " tcp-request connection expect-proxy layer4 unless { src 10.0.0.1 }",
    # A backend may be a sink, or have rules of its own; nobody looks whether something listens there.
    " use_backend c if { src 10.0.0.1 }",
    " use_backend c if !{ src 10.0.0.1 } { req.ssl_sni -i a.org }",
    " use_backend c if { dst_port 26 }",
    " use_backend %[src,map(/etc/haproxy/pools)]",
    " tcp-request content accept if { req.ssl_hello_type 1 } !{ src 10.0.0.0/8 }",
    " tcp-request connection track-sc0 src\n tcp-request connection reject if { sc0_conn_rate gt 3 }",
    ' tcp-request connection reject if { src "$BAD" }',
    " disabled",
)


@pytest.mark.parametrize("rule", CLOSING)
def test_a_rule_that_is_lost_opens_nothing(rule: str):
    found = imported(f"{FRONT}{rule}\n")
    assert found.document["frontends"] == {}
    assert any("open to more clients" in one for one in left(found))


@pytest.mark.parametrize(
    ("rules", "wanted"),
    [
        (
            " tcp-request connection reject if !{ src 10.0.0.0/8 } !{ src 192.0.2.0/24 }",
            {"allow": ["10.0.0.0/8", "192.0.2.0/24"]},
        ),
        (
            " tcp-request connection reject if { src 10.0.0.1 } or { src 2001:db8::1 }",
            {"deny": ["10.0.0.1", "2001:db8::1"]},
        ),
        (" acl a src 10.0.0.0/255.0.0.0\n tcp-request session reject unless a", {"allow": ["10.0.0.0/8"]}),
    ],
)
def test_rules_by_source_that_can_be_said(rules: str, wanted: dict[str, Any]):
    found = imported(f"{FRONT}{rules}\n")
    assert found.document["frontends"]["f"] == {"bind": ["192.0.2.1:25"], "backend": "b", **wanted}


def test_behind_a_proxy_only_session_rules_mean_the_client():
    text = (
        f"{HEAD}frontend f\n bind 192.0.2.1:25 accept-proxy\n default_backend b\n"
        " tcp-request {} reject if {{ src 10.0.0.1 }}\n"
    )
    assert imported(text.format("connection")).document["frontends"] == {}
    found = imported(text.format("session")).document["frontends"]["f"]
    assert found == {"bind": ["192.0.2.1:25"], "accept_proxy": True, "deny": ["10.0.0.1"], "backend": "b"}


def test_accept_proxy_of_one_address_is_not_of_all():
    found = imported(f"{HEAD}frontend f\n bind 192.0.2.1:25\n bind 192.0.2.2:25 accept-proxy\n default_backend b\n")
    assert found.document["frontends"]["f"] == {"bind": ["192.0.2.1:25"], "backend": "b"}
    assert "accept-proxy is of the whole frontend" in left(found)[0]


def test_lines_are_cut_where_haproxy_cuts_them():
    found = imported(f"{FRONT} # old\x0ctcp-request connection reject\x85maxconn 3\u2028maxconn 4\r maxconn 5\n")
    assert found.document["frontends"]["f"] == {"bind": ["192.0.2.1:25"], "backend": "b"}
    assert found.left == []


def test_sections_whose_head_cannot_be_read_are_left_out_whole():
    found = imported(f'{FRONT}frontend "${{X}}"\n bind 192.0.2.2:25\n tcp-request connection reject\n')
    assert found.document["frontends"]["f"]["bind"] == ["192.0.2.1:25"]
    assert [one.why.partition(",")[0] for one in found.left][:1] == ["its head cannot be read"]


def test_a_conditional_block_costs_its_own_lines():
    found = imported(f"{FRONT}.if defined(X)\n maxconn 3\n.endif\n maxconn 4\n")
    assert found.document["frontends"]["f"] == {"bind": ["192.0.2.1:25"], "backend": "b", "maxconn": 4}
    assert [one.text for one in found.left] == [".if defined(X)", "maxconn 3", ".endif"]
    # What may turn clients away, or lead them elsewhere, may hold.
    for line in ("tcp-request connection reject if { src 10.0.0.1 }", "use_backend c if { src 10.0.0.1 }", "mode http"):
        assert imported(f"{FRONT}.if defined(X)\n {line}\n.endif\n").document["frontends"] == {}
    found = imported(f"{FRONT}.if defined(X)\nfrontend g\n bind 192.0.2.1:26\n default_backend b\n.endif\n")
    assert list(found.document["frontends"]) == ["f"]


def test_other_spellings():
    head = FRONT.replace("frontend f\n bind 192.0.2.1:25\n", "listen f 192.0.2.1:25,192.0.2.1:26\n")
    assert imported(head).document["frontends"]["f"]["bind"] == ["192.0.2.1:25", "192.0.2.1:26"]
    hello = (
        f"{FRONT} tcp-request inspect-delay 5s\n acl tls req.ssl_hello_type 1\n tcp-request content accept if tls\n"
        " use_backend b if { req.ssl_sni -i a.org }\n"
    )
    found = imported(hello)
    assert (found.document["frontends"]["f"]["routes"], found.left) == ([{"sni": ["a.org"], "backend": "b"}], [])


def test_who_is_accepted_before_everybody_is_refused_is_a_list():
    rules = " tcp-request connection accept if { src 10.0.0.0/8 }\n tcp-request connection reject\n"
    found = imported(FRONT + rules)
    assert (found.document["frontends"]["f"]["allow"], found.left) == (["10.0.0.0/8"], [])
    # What stands between them holds for those who are accepted too, here.
    between = rules.replace("\n", "\n tcp-request connection reject if { src 10.0.0.1 }\n", 1)
    assert imported(FRONT + between).document["frontends"] == {}


def test_a_limit_by_a_named_acl():
    found = imported(
        f"{FRONT} acl abuse sc0_conn_rate gt 30\n stick-table type ipv6 size 100k expire 10s store conn_rate(10s)\n"
        " tcp-request connection track-sc0 src\n tcp-request connection reject if abuse\n"
    )
    limit = {"connections": 30, "period": "10s"}
    assert (found.document["frontends"]["f"]["rate_limit"], found.left) == (limit, [])


@pytest.mark.parametrize("inline", [True, False])
def test_names_by_an_end_without_a_dot(inline: bool):  # noqa: FBT001  # a parameter of pytest's
    test = "req.ssl_sni -i -m end example.org"
    rule = f" use_backend b if {{ {test} }}\n" if inline else f" acl x {test}\n use_backend b if x\n"
    found = imported(f"{FRONT} tcp-request inspect-delay 5s\n{rule}")
    assert found.document["frontends"]["f"]["routes"] == [{"sni": ["example.org", "*.example.org"], "backend": "b"}]
    (told,) = left(found)
    assert "any name that ends so there" in told


def test_what_only_http_knows_is_not_worth_a_word():
    found = imported(f"{FRONT} option forwardfor\n option http-server-close\n timeout http-request 5s\n")
    assert [one.text for one in found.left if "http" in one.text or "forward" in one.text] == []


def test_sources_in_a_file(tmp_path: Path):
    listed = tmp_path / "allowed"
    listed.write_text("# the office\n203.0.113.0/24\n\n198.51.100.7\n")
    rule = " tcp-request connection reject unless { src -f FILE }\n"
    found = imported(FRONT + rule.replace("FILE", str(listed)))
    assert found.document["frontends"]["f"]["allow"] == ["203.0.113.0/24", "198.51.100.7"]
    assert imported(FRONT + rule.replace("FILE", str(tmp_path / "gone"))).document["frontends"] == {}


def test_names_that_follow_a_map_are_understood():
    found = imported(
        f"{FRONT} tcp-request inspect-delay 5s\n use_backend %[req.ssl_sni,lower,map(/etc/pools)]\n"
        " use_backend b if { req.ssl_sni -i a.org }\n"
    )
    assert list(found.document["backends"]) == ["b"]
    assert found.document["frontends"]["f"]["routes"] == [{"sni": ["a.org"], "backend": "b"}]
    assert ["%[req.ssl_sni" in one.text for one in found.left] == [True]


def test_a_thousand_names_and_more_are_few_routes():
    lines = "".join(f" use_backend b if {{ req.ssl_sni -i n{number}.org }}\n" for number in range(1_100))
    found = imported(f"{FRONT} tcp-request inspect-delay 5s\n{lines}")
    (route,) = found.document["frontends"]["f"]["routes"]
    assert (len(route["sni"]), found.left) == (1_100, [])


def test_host_names_are_looked_up_where_that_is_wanted():
    text = f"{FRONT.replace('a 192.0.2.9:25', 'a mail.example.org:25')}".encode()
    without = importing.convert(text, "haproxy.cfg")
    assert without.document["backends"]["b"]["servers"] == {"a": {"address": "mail.example.org:25"}}
    assert without.left == []
    for odd in ("192.0.2.300:25", "unix@/run/x", "mail.example.org", "mail.example.org:0", "10.0.20:25", "a b:25"):
        nothing = importing.convert(text.replace(b"mail.example.org:25", odd.encode()), "haproxy.cfg")
        assert nothing.document["backends"]["b"]["servers"] == {}, odd
    found = importing.convert(text, "haproxy.cfg", {"mail.example.org": "192.0.2.9"}.get)
    assert found.document["backends"]["b"]["servers"] == {"a": {"address": "192.0.2.9:25"}}
    assert "mail.example.org is 192.0.2.9 now" in left(found)[0]
    assert importing.address_of("localhost") in ("127.0.0.1", "::1")
    assert importing.address_of("no.such.name.invalid") is None


def test_several_files_and_standard_input(tmp_path: Path):
    first, second = tmp_path / "00-defaults.cfg", tmp_path / "10-mail.cfg"
    front = FRONT.removeprefix(FOREVER)
    first.write_text(FOREVER)
    second.write_text(f"{front} odd line\n")
    done = invoke("import", str(first), str(second))
    assert done.exit_code == 6
    assert "not expressed: 10-mail.cfg:6: odd line" in done.stderr
    again = invoke("import", "-", data=FOREVER + front)
    assert again.exit_code == 0, again.output
    assert yaml.safe_load(again.stdout)["frontends"] == yaml.safe_load(done.stdout)["frontends"]


def test_bytes_of_another_age_cost_nothing():
    found = importing.convert(
        FRONT.replace("backend b\n server", "# für die Post\nbackend b\n server").encode("latin-1"), "haproxy.cfg"
    )
    assert list(found.document["frontends"]) == ["f"]


def test_an_opnsense_file_is_refused_by_its_name():
    with pytest.raises(InvalidError, match="OPNsense"):
        importing.convert(b"<opnsense><OPNsense/></opnsense>", "config.xml")


def test_named_defaults():
    text = (
        "defaults A\n mode http\ndefaults B\n timeout connect 5s\n timeout client 1h\n timeout server 1h\n"
        " mode tcp\n maxconn 7\n"
        " default-server send-proxy-v2 check inter 7s\ndefaults C from B\n maxconn 9\nfrontend f from C\n"
        " bind 192.0.2.1:25\n"
        " default_backend b\nfrontend g from B\n bind 192.0.2.1:26\n default_backend b\nfrontend h from A\n"
        " bind 192.0.2.1:27\n"
        "frontend i from nobody\n bind 192.0.2.1:28\nbackend b from C\n server a 192.0.2.9:25\n"
    )
    found = imported(text)
    assert set(found.document["frontends"]) == {"f", "g"}
    maxconns = {
        name: one.get("maxconn", found.document["defaults"]["maxconn"])
        for name, one in found.document["frontends"].items()
    }
    assert maxconns == {"f": 9, "g": 7}
    assert found.document["backends"]["b"]["health"] == {"interval": "7s", "timeout": "7s"}
    assert "proxy_protocol" not in found.document["backends"]["b"]  # v2


SERVERS: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "HAProxy's own interval": (" server a 192.0.2.9:25 check", {"health": {"interval": "2s", "timeout": "2s"}}, []),
    "default-server holds below itself": (
        " server a 192.0.2.9:25\n default-server send-proxy-v2 check",
        {"proxy_protocol": "none", "health": {"type": "none"}},
        [],
    ),
    "v2 wins": (" default-server send-proxy-v2\n server a 192.0.2.9:25 send-proxy", {"health": {"type": "none"}}, []),
    "no- takes away": (
        " default-server backup send-proxy-v2 check\n server a 192.0.2.9:25 no-backup no-send-proxy-v2 no-check",
        {"proxy_protocol": "none", "servers": {"a": {"address": "192.0.2.9:25"}}},
        [],
    ),
    "a value is no word": (
        " server a 192.0.2.9:25 cookie backup maxconn 3",
        {"servers": {"a": {"address": "192.0.2.9:25"}}},
        ["cookie, backup, maxconn, 3"],
    ),
    "names twice": (
        " server s 192.0.2.9:25\n server s 192.0.2.9:26",
        {"servers": {"s": {"address": "192.0.2.9:25"}, "s-2": {"address": "192.0.2.9:26"}}},
        ["s is called s-2 now"],
    ),
    "httpchk without a method": (
        " option httpchk /x\n server a 192.0.2.9:25 check",
        {"health": {"type": "http", "path": "/x", "status": "200-399", "interval": "2s", "timeout": "2s"}},
        ["asks by OPTIONS"],
    ),
    "httpchk with another": (
        " option httpchk HEAD /x\n server a 192.0.2.9:25 check",
        {},
        ["asks by HEAD"],
    ),
    "httpchk with a host in its version": (
        (
            " option httpchk GET /x HTTP/1.1\\r\\nHost:\\ www.example.org\n http-check expect status 200\n"
            " server a 192.0.2.9:25 check"
        ),
        {
            "health": {
                "type": "http",
                "path": "/x",
                "host": "www.example.org",
                "status": 200,
                "interval": "2s",
                "timeout": "2s",
            }
        },
        [],
    ),
    "the last check counts": (
        " option httpchk GET /x\n option tcp-check\n http-check expect status 200\n server a 192.0.2.9:25 check",
        {"health": {"interval": "2s", "timeout": "2s"}},
        ["another check follows", "without option httpchk"],
    ),
    "certificates are looked at unless told otherwise": (
        " option httpchk GET /x\n http-check expect status 200\n server a 192.0.2.9:25 check check-ssl ca-file /my.pem",
        {
            "health": {
                "type": "http",
                "tls": True,
                "path": "/x",
                "status": 200,
                "verify": True,
                "interval": "2s",
                "timeout": "2s",
            }
        },
        ["ca-file"],
    ),
    "check-send-proxy without send-proxy": (
        " server a 192.0.2.9:25 check check-send-proxy",
        {},
        ["carries no header here"],
    ),
    "balance source by a map": (" balance source\n server a 192.0.2.9:25", {}, ["by a map there"]),
    "numbers without end": (
        f" server a 192.0.2.9:25 check rise {'9' * 5000} weight {'9' * 5000}",
        {},
        ["weight", "rise"],
    ),
    "a bare option": (" option\n server a 192.0.2.9:25", {}, ["option"]),
}


@pytest.mark.parametrize("name", SERVERS)
def test_servers_and_checks(name: str):
    text, wanted, told = SERVERS[name]
    found = imported(f"backend b\n{text}\n")
    for key, value in wanted.items():
        assert found.document["backends"]["b"][key] == value
    assert len(found.left) == len(told), left(found)
    for one, word in zip(left(found), told, strict=True):
        assert word in one


def test_backends_in_the_order_that_haproxy_takes_them():
    rest = "backend c\n server a 192.0.2.9:25 check\n"
    last = imported(f"{HEAD}{rest}frontend f\n bind 192.0.2.1:25\n default_backend c\n default_backend b\n")
    assert last.document["frontends"]["f"]["backend"] == "b"
    dead = imported(
        f"{HEAD}{rest}frontend f\n bind 192.0.2.1:443\n use_backend c\n"
        f" use_backend b if {{ req.ssl_sni -i a.org }}\n default_backend b\n"
    )
    assert dead.document["frontends"]["f"] == {"bind": ["192.0.2.1:443"], "backend": "c"}
    stars = imported(f"{FRONT} use_backend b if {{ req.ssl_sni -i *.example.org }}\n")
    assert "routes" not in stars.document["frontends"]["f"]
    assert len(stars.left) == 1


def test_what_is_typed_behind_a_hash_is_told():
    typed = base64.b64encode(b"rise 5 # calm").decode()
    pool = f"<advanced>{typed}</advanced>"
    found = imported(fields(bound("192.0.2.1"), pool, "<weight>9</weight><advanced>send-proxy-v2</advanced>"))
    assert found.document["backends"]["b"]["servers"]["a"]["weight"] == 9
    assert any("behind #" in one for one in left(found))


@pytest.mark.parametrize("encoding", ["utf-7", "shift_jis", "nonsense", "base64"])
def test_odd_encodings_are_refused(encoding: str):
    with pytest.raises(InvalidError):
        importing.convert(f'<?xml version="1.0" encoding="{encoding}"?><pfsense/>'.encode(), "x.xml")


def test_no_name_of_a_file_is_a_line_of_the_state(tmp_path: Path):
    file = tmp_path / "x\nserial: 99\ny.cfg"
    file.write_text(f"{FRONT}{FOREVER}")
    done = run(file)
    assert "serial" not in yaml.safe_load(done.stdout)


SNI = " tcp-request inspect-delay 5s\n use_backend b if { req.ssl_sni -i a.org }\n"

REFUSING = {
    "rules of a backend": f"{FRONT}backend b\n tcp-request content reject unless {{ src 10.0.0.0/8 }}\n",
    "a disabled backend": FRONT.replace("backend b\n", "backend b\n disabled\n"),
    "rules of defaults": "defaults D\n timeout connect 5s\n timeout client 1h\n timeout server 1h\n"
    f" tcp-request connection reject if {{ src 10.0.0.1 }}\n{FRONT.partition('server 1h')[2][1:]}",
    "disabled defaults": f"defaults\n disabled\n{FRONT.partition('server 1h')[2][1:]}",
    "an acl of which a line is lost": f'{FRONT} acl bad src 10.0.0.1\n acl bad src "${{BAD}}"\n'
    " tcp-request connection reject if bad\n",
    "an unreadable rule": f'{FRONT} tcp-request connection silent-drop if {{ src "${{BAD}}" }}\n',
    "a rule with escapes": f"{FRONT} tcp-request connection re\\x6aect if {{ src 10.0.0.1 }}\n",
    "another source": f"{FRONT} tcp-request connection set-src src,ipmask(24)\n",
    "a script": f"{FRONT} tcp-request content lua.guard\n",
    "a backend without a server": f"{FRONT} use_backend nowhere if {{ src 10.0.0.1 }}\nbackend nowhere\n",
    "no default": f"{FRONT.replace(' default_backend b', ' use_backend b if { src 10.0.0.0/8 }')}",
    "nothing at all": f"{FRONT.replace(' default_backend b', '')}",
    "names that lead to a sink": f"{FRONT} use_backend sink if {{ req.ssl_sni -m reg ^a }}\n"
    "backend sink\n server none 127.0.0.1:80 disabled\n",
    "names that lead to a server of no weight": f"{FRONT} use_backend sink if {{ req.ssl_sni -m reg ^a }}\n"
    "backend sink\n server none 127.0.0.1:80 weight 0\n",
    "a bare reject behind other names": f"{FRONT.replace(' default_backend b', SNI.rstrip())}"
    " tcp-request content accept if { req.ssl_sni -i other.org }\n tcp-request content reject\n",
    "hello, and then a reject": f"{FRONT}{SNI} tcp-request content accept if {{ req.ssl_hello_type 1 }}\n"
    " tcp-request content reject if { src 10.0.0.1 }\n",
}


def test_what_only_moves_clients_to_where_all_go_is_dropped():
    found = imported(f"{FRONT} use_backend b if {{ src 10.0.0.1 }}\n")
    assert found.document["frontends"]["f"] == {"bind": ["192.0.2.1:25"], "backend": "b"}
    assert [one.text for one in found.left] == ["use_backend b if { src 10.0.0.1 }"]


def test_a_frontend_of_names_alone_goes_on_refusing_everybody_else():
    routed = FRONT.replace(" default_backend b\n", " tcp-request inspect-delay 5s\n")
    closing = " tcp-request content accept if { req.ssl_sni -i a.org }\n tcp-request content reject\n"
    for more in ("", closing):
        found = imported(f"{routed}{more} use_backend b if {{ req.ssl_sni -i a.org }}\n")
        wanted = {"bind": ["192.0.2.1:25"], "routes": [{"sni": ["a.org"], "backend": "b"}]}
        assert (found.document["frontends"]["f"], found.left) == (wanted, [])


def test_proxies_that_alone_may_send_a_header():
    found = imported(f"{FRONT} tcp-request connection expect-proxy layer4 if {{ src 10.0.0.1 10.1.0.0/16 }}\n")
    assert found.document["frontends"]["f"]["accept_proxy"] == ["10.0.0.1", "10.1.0.0/16"]
    assert found.left == []


@pytest.mark.parametrize("how", ["sc0_conn_rate", "sc_conn_rate(0)", "src_conn_rate"])
def test_limits_by_source(how: str):
    found = imported(
        f"{FRONT} acl known src 10.0.0.1\n"
        " stick-table type ipv6 size 100k expire 10s store conn_rate(10s),conn_cur peers mypeers\n"
        f" tcp-request connection track-sc0 src unless known\n tcp-request connection reject if {{ {how} gt 30 }}\n"
        f" tcp-request connection reject if {{ {how.replace('rate', 'cur')} gt 20 }}\n"
    )
    limit = {"connections": 30, "period": "10s", "concurrent": 20, "exempt": ["10.0.0.1"]}
    assert (found.document["frontends"]["f"]["rate_limit"], found.left) == (limit, [])


def test_what_defaults_say_holds_for_each_backend():
    found = imported(
        "defaults\n timeout connect 5s\n timeout client 1h\n timeout server 1h\n timeout check 4s\n balance leastconn\n"
        " option httpchk GET /x\n option redispatch\n retries 3\n default_backend b\n"
        "frontend f\n bind 192.0.2.1:25\n"
        "backend b\n server a 192.0.2.9:25 check\n"
    )
    assert found.document["frontends"]["f"]["backend"] == "b"
    pool = found.document["backends"]["b"]
    assert pool["balance"] == "leastconn"
    assert pool["health"] == {"type": "http", "path": "/x", "status": "200-399", "interval": "2s", "timeout": "4s"}
    assert found.left == []


def test_servers_by_name_stay_names_and_say_what_their_backend_is():
    found = imported(
        f"{FRONT.replace(' server a 192.0.2.9:25 check', ' option httpchk GET /x')} default_backend b\n"
        "backend named\n server x mail.example.org:25\n"
        "frontend g\n bind 192.0.2.1:26\n default_backend c\n"
        "backend c\n option httpchk GET /x\n server x mail.example.org:25 check send-proxy\n"
    )
    pool = found.document["backends"]["c"]
    assert (pool["proxy_protocol"], pool["servers"], pool["health"]["type"]) == (
        "v1",
        {"x": {"address": "mail.example.org:25"}},
        "http",
    )


def test_no_password_comes_out(tmp_path: Path):
    file = tmp_path / "haproxy.cfg"
    file.write_text(
        f"{FRONT} stats auth admin:Secret1\nuserlist u\n user a insecure-password Secret2\n user b password Secret3\n"
    )
    done = run(file)
    assert "Secret" not in done.output + done.stderr
    assert "stats auth ..." in done.stderr


@pytest.mark.parametrize("name", REFUSING)
def test_whatever_refuses_clients_elsewhere_opens_nothing_either(name: str):
    text = REFUSING[name]
    if name == "rules of a backend":
        text = FRONT.replace("backend b\n", "backend b\n tcp-request content reject unless { src 10.0.0.0/8 }\n", 1)
    found = imported(text)
    assert found.document["frontends"] == {}
    assert any("left out" in one for one in left(found))


def test_defaults_from_others():
    head = "defaults base\n mode http\n"
    for more in ("defaults from base\n", 'defaults B from "${X}"\n'):
        found = imported(
            f"{head}{more}frontend f\n bind 192.0.2.1:25\n default_backend b\nbackend b\n server a 192.0.2.9:25\n"
        )
        assert found.document["frontends"] == {}


LATIN = base64.b64encode("# F\u00fc\u00dfe\nmaxconn 3".encode("latin-1")).decode()
ACTION = (
    "<ha_acls><item><name>x</name><expression>source_ip</expression><value>10.0.0.1</value></item></ha_acls>"
    "<a_actionitems><item><action>{}</action><acl>x</acl></item></a_actionitems>"
)


@pytest.mark.parametrize(
    ("frontend", "wanted"),
    [
        (ACTION.format("tcp-request_content_reject"), {"deny": ["10.0.0.1"]}),
        (ACTION.format("tcp-request_content_lua"), None),
        (ACTION.format("custom"), None),
        ("<advanced>!!</advanced>", None),
        ("<advanced>\u00e9</advanced>", None),
        (
            f"<advanced>{LATIN}</advanced>",
            {"maxconn": 3},
        ),
        ("<ha_acls><item><name>x</name><expression>{</expression><value>{0}</value></item></ha_acls>", {}),
    ],
)
def test_rules_of_a_pfsense_frontend(frontend: str, wanted: dict[str, Any] | None):
    found = imported(fields(f"{bound('192.0.2.1')}{frontend}"))
    got = found.document["frontends"].get("f")
    assert got == (None if wanted is None else {"bind": ["192.0.2.1:25"], "backend": "b"} | wanted)


def test_only_what_the_package_serves_is_served():
    for status in ("", "disabled"):
        text = fields(bound("192.0.2.1")).replace("<name>f</name><status>active", f"<name>f</name><status>{status}")
        assert imported(text).document["frontends"] == {}


def test_shared_frontends_in_the_order_of_the_file():
    def item(name: str, acl: str, pool: str, rest: str) -> str:
        return (
            f"<item><name>{name}</name><status>active</status><type>https</type>{rest}<ha_acls><item><name>{name}</name>"
            f"<expression>{acl}</expression></item></ha_acls><a_actionitems><item><action>use_backend</action>"
            f"<use_backendbackend>{pool}</use_backendbackend><acl>{name}</acl></item></a_actionitems>"
            "<backend_serverpool>b</backend_serverpool></item>"
        )

    one = "ssl_sni_matches</expression><value>a.org</value><expression>"
    many = "ssl_sni_ends_with</expression><value>.org</value><expression>"
    second = item("g", one, "c", "<secondary>yes</secondary><primary_frontend>f</primary_frontend>")
    first = item("f", many, "d", bound("192.0.2.1", "443"))
    pools = "".join(
        f"<item><name>{name}</name><ha_servers><item><name>a</name><address>192.0.2.9</address><port>25</port>"
        "<status>active</status></item></ha_servers></item>"
        for name in "bcd"
    )
    text = (
        f"<pfsense><installedpackages><haproxy><ha_backends>{second}{first}</ha_backends><ha_pools>{pools}</ha_pools>"
    )
    found = imported(f"{text}</haproxy></installedpackages></pfsense>")
    assert [one["sni"] for one in found.document["frontends"]["f"]["routes"]] == [["a.org"], ["*.org"]]


def test_a_disabled_server_of_a_listen_closes_nothing():
    found = imported("listen l\n bind 192.0.2.1:25\n timeout client 500us\n server a 192.0.2.9:25 disabled\n")
    assert found.document["frontends"]["l"]["bind"] == ["192.0.2.1:25"]
    assert any("timeout client 500us" in one for one in left(found))


def test_what_is_left_out_is_named_with_the_key_it_has_here(tmp_path: Path):
    file = tmp_path / "haproxy.cfg"
    file.write_text(
        f"global\n maxconn 9000\n{FRONT} stick-table type ipv6 size 1m expire 30s store conn_rate(10s)\n"
        " tcp-request connection track-sc0 src\n tcp-request connection reject if { sc0_conn_rate gt 9 }\n"
        " unique-id-format\tx\n"
    )
    done = run(file)
    assert "maxconn 9000: haproxy.maxconn in agent.toml" in done.stderr
    assert "size 100k here" in done.stderr
    assert "expire 10s here, the period of the rate" in done.stderr
    assert "unique-id-format\tx: cannot be expressed here" in done.stderr
    assert yaml.safe_load(done.stdout)["version"] == 1
