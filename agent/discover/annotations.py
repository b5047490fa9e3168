"""What a Service asks for by its annotations, or every mistake in them at once. Pure.

`edgeagent.io/expose: "smtp=25, smtps=465"` says which of its ports, and at which port of the firewall.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from attrs import frozen

from agent.desired.addresses import MAX_PORT, WILDCARDS, ip
from agent.desired.scalars import describe, did_you_mean
from agent.desired.schema import Application, ProxyProtocol
from agent.discover import selector
from agent.discover.objects import PREFIX, Port, Service

ROUTED = "routed"
"""`expose: "web=routed"`: a backend only; routes of the base lead there."""
VIA = ("nodeport", "endpoints", "loadbalancer", "clusterip")
_WHOLE = ("expose", "prefix", "via", "nodes")
_EACH = ("bind", "proxy-protocol", "application", "health-port")
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?")
_LISTEN = re.compile(r"[1-9][0-9]{0,4}")


@frozen
class Mistake:
    """What is wrong, and where in the Service (an annotation, a field)."""

    where: str
    message: str
    conflict: bool = False
    """Whether it is at odds with the base."""
    kept: bool = False
    """Whether the base keeps the name for another."""

    @property
    def text(self) -> str:
        """In one line."""
        return f"{self.where}: {self.message}"


@frozen(kw_only=True)
class Exposed:
    """One port as it shall be served. `listen` None: no frontend of its own. `bind` (): the Service does not say.

    `said`: whether `listen` was, or is the port's own number. `check`: the port that is checked instead. None of
    `proxy_protocol`, `application`: not said.
    """

    name: str
    port: Port
    listen: int | None
    said: bool = False
    bind: tuple[str, ...] = ()
    check: Port | None = None
    proxy_protocol: str | None = None
    application: str | None = None


@frozen(kw_only=True)
class Exposure:
    """All of a Service. `nodes`: the label selector as it was written, "" for every node."""

    exposed: tuple[Exposed, ...]
    via: str = "nodeport"
    nodes: str = ""


def read(service: Service) -> tuple[Exposure | None, tuple[Mistake, ...]]:
    """What it asks for; None where there is a mistake."""
    reader = _Reader(service, service.annotations)
    exposure = reader.exposure()
    return (None if reader.mistakes else exposure), tuple(dict.fromkeys(reader.mistakes))


class _Reader:
    def __init__(self, service: Service, said: Mapping[str, str]) -> None:
        self.service, self.said = service, said
        self.mistakes: list[Mistake] = []

    def wrong(self, key: str, message: str) -> None:
        self.mistakes.append(Mistake(f"{PREFIX}{key}", message))

    def exposure(self) -> Exposure:
        pairs = list(self._pairs())
        ports = {text: port for port, _, _ in pairs for text in (port.name, str(port.number)) if text}
        self._known(ports)
        prefix = self.said.get("prefix", "")
        via = self._one_of("via", VIA) or "nodeport"
        nodes = self.said.get("nodes", "").strip()
        if nodes:
            try:
                selector.parse(nodes)
            except ValueError as error:
                self.wrong("nodes", str(error))
            if via != "nodeport":
                self.wrong("nodes", f"nodes are chosen for `via: nodeport`, not for {via}")
        self._fits(via)
        exposed = [self._exposed(port, listen, prefix, via, said=said) for port, listen, said in pairs]
        return Exposure(exposed=tuple(exposed), via=via, nodes=nodes)

    def _fits(self, via: str) -> None:
        """Whether a Service of its kind can be reached so."""
        kind = self.service.kind
        if kind == "ExternalName":
            self.wrong("expose", "the Service is an ExternalName: nothing of it is in the cluster")
        elif via == "loadbalancer" and self.service.balanced:
            self.wrong("via", "its load balancer is the firewall itself; leave `via` out, then its NodePorts serve")
        elif via == "loadbalancer" and kind != "LoadBalancer":
            self.wrong("via", f"the Service is of type {_word(kind)}, nobody gives it an address")
        elif via == "clusterip" and not self.service.addresses:
            self.wrong("via", "the Service is headless, it has no cluster address; `endpoints` has its pods")

    def _pairs(self) -> Iterator[tuple[Port, int | None, bool]]:
        """Each port, where it listens (None: nowhere by itself), and whether that was said."""
        if "expose" not in self.said and self.service.balanced:
            yield from self._every_port()
            return
        if "expose" not in self.said:
            self.wrong("expose", 'is missing: which ports, and where, such as "smtp=25, smtps=465"')
            return
        seen = set()
        for part in self.said["expose"].split(","):
            name, equals, at = (one.strip() for one in part.partition("="))
            if not name or (equals and not at):
                example = "'smtp=25, smtps=465'"
                self.wrong("expose", f"ports are expected, such as {example}; got {describe(part.strip())}")
                continue
            port = self._port("expose", name)
            if port is None:
                continue
            if port in seen:
                self.wrong("expose", f"port {_word(name)} is named twice")
                continue
            seen.add(port)
            if at == ROUTED:
                yield port, None, True
            elif not at:
                yield port, port.number, False
            elif _LISTEN.fullmatch(at) and int(at) <= MAX_PORT:
                yield port, int(at), True
            else:
                self.wrong(
                    "expose", f"{_word(name)}: a port from 1 to 65,535 or `{ROUTED}` is expected, got {describe(at)}"
                )

    def _every_port(self) -> Iterator[tuple[Port, int | None, bool]]:
        """Of a Service whose load balancer is the firewall: all but those that are named as health ports."""
        checks = {value.strip() for key, value in self.said.items() if key.partition(".")[0] == "health-port"}
        for port in self.service.ports:
            if checks.isdisjoint({port.name, str(port.number)} - {""}):
                if port.protocol != "TCP":
                    self.wrong("expose", f"port {describe(port.text)} is not TCP: name those that are, in `expose`")
                else:
                    yield port, port.number, False

    def _port(self, key: str, name: str) -> Port | None:
        found = [one for one in self.service.ports if name in (one.name, str(one.number)) and one.protocol == "TCP"]
        if found:
            return next((one for one in found if one.name == name), found[0])
        if any(name in (one.name, str(one.number)) for one in self.service.ports):
            self.wrong(key, f"port {describe(name)} is not TCP, and HAProxy forwards nothing else here")
        else:
            self.wrong(
                key,
                f"the Service has no port {_word(name)}"
                f"{did_you_mean(name, [port.text for port in self.service.ports])}",
            )
        return None

    def _known(self, ports: Mapping[str, Port]) -> None:
        """Each annotation is one of ours, and of a port that is exposed."""
        own = {text for port in self.service.ports for text in (port.name, str(port.number))}
        for key in sorted(self.said):
            name, dot, port = key.partition(".")
            if key in _WHOLE or (name in _EACH and not dot):
                continue
            if name not in _EACH:
                self.wrong(key, f"unknown annotation{did_you_mean(name, [*_WHOLE, *_EACH])}")
            elif port not in ports and not (self.mistakes and port in own):  # one typo is one complaint
                self.wrong(key, f"port {_word(port)} is not exposed{did_you_mean(port, ports)}")

    def _each(self, key: str, port: Port) -> tuple[str, str]:
        """The annotation that holds for this port, and what it says ("": nothing)."""
        for own in (f"{key}.{port.name}", f"{key}.{port.number}"):
            if own in self.said:
                return own, self.said[own].strip()
        return key, self.said.get(key, "").strip()

    def _one_of(self, key: str, words: tuple[str, ...], value: str | None = None) -> str | None:
        said = self.said.get(key, "").strip() if value is None else value
        if said and said not in words:
            self.wrong(key, f"expected one of {', '.join(words)}, got {describe(said)}{did_you_mean(said, words)}")
        return said or None

    def _exposed(self, port: Port, listen: int | None, prefix: str, via: str, *, said: bool) -> Exposed:
        name = f"{prefix}-{port.name}" if prefix and port.name else prefix or port.name or self.service.name
        if not _NAME.fullmatch(name):
            self.wrong("prefix" if prefix else "expose", f"{name!r} is no name of a frontend (63 of a-z 0-9 . _ -)")
        key, checked = self._each("health-port", port)
        check = self._port(key, checked) if checked else None
        if via == "nodeport":
            for one, where in ((port, "expose"), (check, key)):
                if one is not None and one.node is None:
                    remedy = f"make the Service one of type NodePort, or say `via` ({', '.join(VIA[1:])})"
                    if self.service.balanced:
                        remedy = "allocateLoadBalancerNodePorts must not be false"
                    self.wrong(where, f"port {one.text} has no NodePort: {remedy}")
        protocol = self._each("proxy-protocol", port)
        application = self._each("application", port)
        return Exposed(
            name=name,
            port=port,
            listen=listen,
            said=said,
            bind=self._bind(port, listen),
            check=check,
            proxy_protocol=self._one_of(protocol[0], tuple(ProxyProtocol), protocol[1]),
            application=self._one_of(application[0], tuple(Application), application[1]),
        )

    def _bind(self, port: Port, listen: int | None) -> tuple[str, ...]:
        key, said = self._each("bind", port)
        if said and listen is None and key != "bind":
            self.wrong(key, f"port {port.text} is `{ROUTED}`: it is bound by the base's frontend")
        found = []
        for part in said.split(",") if said else ():
            try:
                host = ip(part.strip())[1]
            except ValueError:
                got = describe(part.strip())
                self.wrong(key, f"addresses are expected, such as `192.0.2.1, 2001:db8::1`; got {got}")
                continue
            if host in WILDCARDS:
                self.wrong(key, f"{host} is every address of the firewall; that is the base's to say, not a Service's")
            found.append(host)
        return tuple(dict.fromkeys(found)) if listen is not None else ()


def _word(text: str) -> str:
    """As it is where it is a plain word; else as a message may have it."""
    return text if re.fullmatch(r"[A-Za-z0-9.-]{1,63}", text) else describe(text)
