"""The haproxy package's part of a pfSense config.xml, as the sections that the package writes into its haproxy.cfg.

Which field becomes which directive is the package's own doing (pfSense-pkg-haproxy, haproxy.inc). What is not known
here becomes a line all the same, so that it is listed and not dropped.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator

from agent.tools.configxml import Element
from agent.tools.importer.haproxycfg import Line, Section, lines

_CHECKS = {
    "HTTP": "httpchk", "SMTP": "smtpchk HELO", "ESMTP": "smtpchk EHLO", "SSL": "ssl-hello-chk",
    "LDAP": "ldap-check", "MySQL": "mysql-check", "PostgreSQL": "pgsql-check", "Redis": "redis-check",
}  # fmt: skip
_ACLS = {
    "ssl_sni_matches": "req.ssl_sni{case} {value}",
    "ssl_sni_ends_with": "req.ssl_sni -m end{case} {value}",
    "source_ip": "src {value}",
}
_RULES = tuple(f"tcp-request_{at}_{what}" for at in ("connection", "content") for what in ("accept", "reject"))
_WILDCARDS = {
    "any_ipv4": "0.0.0.0",  # noqa: S104  # read, not bound
    "any_ipv6": "[::]",
    "localhost_ipv4": "127.0.0.1",
    "localhost_ipv6": "[::1]",
}
# Fields that say nothing of what is served, or that are looked at below.
_FRONTEND = frozenset(
    """
    name descr desc status type primary_frontend secondary a_extaddr extaddr port ha_acls a_actionitems
    backend_serverpool advanced advanced_bind max_connections client_timeout httpclose id _index
""".split()  # noqa: SIM905  # as a paragraph it can be read
)
_POOL = frozenset(
    """
    name descr desc id balance check_type checkinter httpcheck_method monitor_uri monitor_httpversion monitor_domain
    connection_timeout server_timeout ha_servers advanced advanced_backend persist_cookie_mode persist_stick_expire
    persist_stick_tablesize persist_stick_length _index
""".split()  # noqa: SIM905  # as a paragraph it can be read
)
_SERVER = frozenset("name address port status weight ssl checkssl sslserververify advanced id _index".split())  # noqa: SIM905  # likewise
_QUIET = ("", "no", "none")  # a field that is left as it was


def read(root: Element, file: str) -> list[Section]:
    """Frontends first, then pools; empty where the package is not there."""
    packages = root.all("installedpackages", "haproxy")
    if not packages:
        return []
    package, *others = packages
    reader = _Reader(root, file)
    frontends = [reader.frontend(item) for item in package.all("ha_backends", "item")]
    pools = [reader.pool(item) for item in package.all("ha_pools", "item")]
    general = Section("global", "", f"{file}:{package.line}")
    general.lines += [Line(f"{file}:{other.line}", "<haproxy> again", ()) for other in others]
    general.lines += reader.rest(package, frozenset(("ha_backends", "ha_pools", "enable")), "")
    return [general, *reader.shared(frontends), *pools]


class _Reader:
    """Knows the rest of the file: addresses of interfaces and of virtual IPs."""

    def __init__(self, root: Element, file: str) -> None:
        self._root, self._file = root, file
        self._primary: dict[int, str] = {}  # by the section that has no address of its own

    def _place(self, element: Element) -> str:
        return f"{self._file}:{element.line}"

    def _line(self, element: Element, text: str) -> Line:
        return Line.of(self._place(element), text)

    def _decoded(self, item: Element, tag: str) -> Iterator[Line]:
        """Lines that were typed into a box of the GUI, which keeps them in base64."""
        element = item.first(tag)
        if element is None or not element.text.strip():
            return
        try:
            data = base64.b64decode("".join(element.text.split()), validate=True)
        except ValueError:  # what it would have said may be a rule
            yield Line(self._place(element), f"tcp-request? <{tag}> that is no base64", ())
            return
        try:
            text = data.decode()
        except UnicodeDecodeError:
            text = data.decode("latin-1")
        yield from (self._line(element, row) for row in lines(text) if row.strip())

    def rest(self, item: Element, known: frozenset[str], where: str) -> list[Line]:
        """Every field that is set and that nothing here looks at."""
        return [
            Line(self._place(child), f"{where}<{child.tag}>{child.text.strip()[:60]}", ())
            for child in item.children
            if child.tag not in known and (child.children or child.text.strip() not in _QUIET)
        ]

    # --- frontends

    def frontend(self, item: Element) -> Section:
        """One item of ha_backends, which is what the package calls its frontends."""
        name = item.value("name")
        section = Section("frontend", name, self._place(item))
        if item.value("status") != "active":  # the package's own test
            section.kind = "disabled"
        if item.value("secondary") == "yes":
            self._primary[id(section)] = item.value("primary_frontend")
        else:
            section.lines += self._binds(item)
        mode = {"http": "http", "": "http"}.get(item.value("type"), "tcp")
        section.lines.append(self._line(item, f"mode {mode}"))
        if id(section) in self._primary:  # of these the package takes the primary's only
            for tag in ("max_connections", "client_timeout", "advanced"):
                if item.value(tag):
                    section.lines.append(Line(self._place(item), f"<{tag}> of a shared frontend", ()))
        else:
            if item.value("max_connections"):
                section.lines.append(self._line(item, f"maxconn {item.value('max_connections')}"))
            section.lines.append(self._line(item, f"timeout client {item.value('client_timeout') or '30000'}"))
            section.lines += self._decoded(item, "advanced")
        if any(acl.value("expression").startswith("ssl_sni") for acl in item.all("ha_acls", "item")):
            section.lines.append(self._line(item, "tcp-request inspect-delay 5s"))
        negated = set()
        for acl in item.all("ha_acls", "item"):
            case = "" if acl.value("casesensitive") == "yes" else " -i"
            kind = acl.value("expression")
            value = acl.value("value")
            text = _ACLS[kind].format(case=case, value=value) if kind in _ACLS else f"<{kind}> {value}"
            section.lines.append(self._line(acl, f"acl {acl.value('name')} {text}"))
            if acl.value("not") == "yes":
                negated.add(acl.value("name"))
        for action in item.all("a_actionitems", "item"):
            names = action.value("acl").split()
            when = " if " + " ".join(f"{'!' * (acl_name in negated)}{acl_name}" for acl_name in names) if names else ""
            what = action.value("action")
            if what == "use_backend":
                verb = "use_backend" if names else "default_backend"
                text = f"{verb} {action.value('use_backendbackend')}{when}"
            else:
                rule = what.replace("_", " ") if what in _RULES else f"<action> {what}"
                restricts_clients = what not in _RULES and (what.startswith("tcp-request") or what == "custom")
                text = f"{'tcp-request ' * restricts_clients}{rule}{when}"
            section.lines.append(self._line(action, text))
        if item.value("backend_serverpool"):
            section.lines.append(self._line(item, f"default_backend {item.value('backend_serverpool')}"))
        section.lines += self.rest(item, _FRONTEND, "")
        return section

    def _binds(self, item: Element) -> Iterator[Line]:
        advanced = item.value("advanced_bind")
        rows = item.all("a_extaddr", "item") or [item]
        for row in rows:
            chosen, custom = row.value("extaddr"), row.value("extaddr_custom")
            ports = row.value("extaddr_port") or row.value("port")
            address = custom if chosen == "custom" else self._address(chosen)
            ssl = " ssl" if row.value("extaddr_ssl") == "yes" else ""
            more = " ".join((row.value("exaddr_advanced") + row.value("extaddr_advanced"), advanced)).strip()
            for port in ports.replace(",", " ").split():
                yield self._line(row, f"bind {address or f'<{chosen}>'}:{port}{ssl} {more}")

    def _address(self, chosen: str) -> str:
        """Of an interface with a static address, or of a virtual IP; "" where it is not in the file (DHCP)."""
        if chosen in _WILDCARDS:
            return _WILDCARDS[chosen]
        for vip in self._root.all("virtualip", "vip"):
            if chosen in (vip.value("subnet"), f"_vip{vip.value('uniqid')}"):
                return _bracketed(vip.value("subnet"))
        name, _, family = chosen.rpartition("_")
        interface = self._root.first("interfaces", name or chosen)
        address = interface.value("ipaddrv6" if family == "ipv6" else "ipaddr") if interface is not None else ""
        if not address and interface is None:
            address = chosen  # an address itself
        return _bracketed(address) if address and address[-1] in "0123456789abcdefABCDEF:" and address != "dhcp" else ""

    def shared(self, frontends: list[Section]) -> list[Section]:
        """A `shared frontend` has no address of its own: its rules stand with its primary's, in their order."""
        own = {
            frontend.name: frontend
            for frontend in frontends
            if id(frontend) not in self._primary and frontend.kind == "frontend"
        }
        groups: dict[str, list[Line]] = {name: [] for name in own}
        for section in frontends:
            primary = self._primary.get(id(section), section.name)
            if section.kind != "frontend":
                continue
            if primary not in own:
                section.kind = "disabled"  # it has no address without its primary
            else:
                shared = id(section) in self._primary
                groups[primary] += [line for line in section.lines if not (shared and line.words[:1] == ("mode",))]
                section.kind = "shared" if shared else section.kind
        for name, section in own.items():
            section.lines = groups[name]
        return [frontend for frontend in frontends if frontend.kind != "shared"]

    # --- pools

    def pool(self, item: Element) -> Section:
        """One item of ha_pools."""
        section = Section("backend", item.value("name"), self._place(item))
        for tag, name in (("connection_timeout", "connect"), ("server_timeout", "server")):
            section.lines.append(self._line(item, f"timeout {name} {item.value(tag) or '30000'}"))
        if item.value("balance"):
            section.lines.append(self._line(item, f"balance {item.value('balance')}"))
        kind = item.value("check_type")
        check = "" if kind == "none" else f"check inter {item.value('checkinter') or '1000'}"
        if kind == "HTTP":
            words = (
                item.value("httpcheck_method"),
                item.value("monitor_uri") or "/",
                item.value("monitor_httpversion"),
            )
            section.lines.append(self._line(item, f"option httpchk {' '.join(words)}"))
        elif kind in _CHECKS:
            more = item.value("monitor_domain") if "SMTP" in kind else ""
            section.lines.append(self._line(item, f"option {_CHECKS[kind]} {more}"))
        elif kind not in ("none", "Basic", ""):
            section.lines.append(Line(self._place(item), f"<check_type>{kind}", ()))
        section.lines += self._decoded(item, "advanced_backend")
        typed = list(self._decoded(item, "advanced"))
        section.lines += [line for line in typed if not line.words]
        extra = " ".join(line.text for line in typed if line.words)
        for server in item.all("ha_servers", "item"):
            section.lines += self._server(server, (check, extra))
        section.lines += self.rest(item, _POOL, "")
        return section

    def _server(self, element: Element, more: tuple[str, str]) -> Iterator[Line]:
        name, status = element.value("name") or element.value("address"), element.value("status")
        where = f"server {name}: "
        if status == "inactive":
            yield Line(self._place(element), f"{where}inactive", ())
            return
        words = [f"server {name} {_bracketed(element.value('address'))}:{element.value('port')}"]
        words += ["ssl"] if element.value("ssl") == "yes" else []
        if element.value("ssl") == "yes" or element.value("checkssl") == "yes":
            words += ["check-ssl"] if element.value("checkssl") == "yes" else []
            words += ["verify required"] if element.value("sslserververify") == "yes" else ["verify none"]
        check, extra = more
        words += [check, status if status in ("backup", "disabled") else ""]
        words += [f"weight {element.value('weight')}"] if element.value("weight").isdecimal() else []
        yield self._line(element, " ".join([*words, extra, element.value("advanced")]))
        if "#" in extra:
            yield Line(self._place(element), f"{where}what stands behind # in the pool's text for servers", ())
        yield from self.rest(element, _SERVER, where)


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address and not address.startswith("[") else address
