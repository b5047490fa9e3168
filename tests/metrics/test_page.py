"""The status page in a real browser: what it says, how it looks, for whom."""

from __future__ import annotations

import contextlib
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from axe_selenium_python import Axe
from kit import worked
from kit.edge import Edge, until
from kit.left_out import leave_out
from kit.servers import echo, free_port
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By

from agent.view import page
from agent.view.status import Status, from_json

SHOTS = Path(__file__).parents[2] / ".cache/screenshots"  # for people to look at; git ignores them
CHROMIUM, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")


@pytest.fixture(scope="module")
def browser() -> Iterator[Chrome]:
    SHOTS.mkdir(parents=True, exist_ok=True)
    if not CHROMIUM.exists() or not DRIVER.exists():
        leave_out("Chromium is not here")
    options = ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for word in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-proxy-server"):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = Chrome(options=options, service=Service(str(DRIVER)))
    try:
        yield driver
    finally:
        driver.quit()


def fine(browser: Chrome) -> None:
    """No word on the console, no overflow on a phone, nothing serious for axe, in light and in dark."""
    assert browser.get_log("browser") == []
    for scheme in ("light", "dark"):
        browser.execute_cdp_cmd(
            "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        )
        axe = Axe(browser)
        axe.inject()
        found = axe.run()["violations"]
        serious = [(one["id"], one["nodes"][0]["html"]) for one in found if one["impact"] in ("serious", "critical")]
        assert serious == [], scheme
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 360, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    )
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 360
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def drawn(browser: Chrome, name: str) -> str:
    """The state in which the picture shows a box."""
    script = "return [...document.querySelectorAll('svg g.node')].map(one => [one.textContent, one.className.baseVal])"
    found = [state for text, state in browser.execute_script(script) if name in text]
    return str(found[0]).removeprefix("node ") if found else ""


def test_a_frontend_goes_up_degraded_down_and_quarantined(one_edge: Edge, browser: Chrome):
    port, taken, web = free_port(), free_port(), free_port()
    haproxy = f'[haproxy]\nbinary = "{one_edge.binary}"\nmaxconn = 500\n[apply]\nresync = "1s"\n'
    one_edge.configure(f'{haproxy}[metrics]\nlisten = "127.0.0.1:{web}"')
    with contextlib.ExitStack() as stack:
        servers = {name: stack.enter_context(contextlib.ExitStack()) for name in ("a", "b")}
        addresses = {name: servers[name].enter_context(echo(name)).address for name in servers}
        document: dict[str, Any] = {
            "version": 1,
            "frontends": {"smtp": {"bind": [f"127.0.0.1:{port}"], "backend": "mail"}},
            "backends": {
                "mail": {
                    "servers": {name: {"address": address} for name, address in addresses.items()},
                    "health": {"interval": "100ms", "fall": 1, "rise": 1},
                }
            },
        }
        one_edge.put(document)
        one_edge.serve()

        def says(sentence: str, state: str) -> None:
            def so() -> bool:
                browser.get(f"http://127.0.0.1:{web}/")
                return browser.find_element(By.TAG_NAME, "h1").text[2:] == sentence

            until(so, sentence)
            assert drawn(browser, "smtp") == state
            fine(browser)
            browser.save_screenshot(str(SHOTS / f"{state}.png"))

        says("The one frontend is serving.", "up")
        assert (drawn(browser, "a 127."), drawn(browser, "mail")) == ("up", "up")
        servers["b"].close()
        says("0 of 1 frontends are fully serving; smtp is degraded (1 of 2 servers up).", "degraded")
        assert (drawn(browser, "a 127."), drawn(browser, "b 127.")) == ("up", "down")
        servers["a"].close()
        says("0 of 1 frontends are fully serving; smtp is down (0 of 2 servers up).", "down")
        with socket.create_server(("127.0.0.1", taken)):
            document["frontends"]["smtp"]["bind"] = [f"127.0.0.1:{taken}"]
            one_edge.put(document)
            holder = f"the address is in use, by {psutil.Process().name()} (pid {os.getpid()})"
            why = f"127.0.0.1:{taken}: {holder}"
            says(f"0 of 1 frontends are fully serving; smtp is quarantined ({why}).", "quarantined")
            body = browser.find_element(By.TAG_NAME, "body").text
            assert f"127.0.0.1:{taken} quarantined: " in body
            assert "goes live by itself" in body


def status(document: dict[str, Any]) -> Status:
    """Only what has the shape of a status is drawn."""
    read = from_json(document, Status)
    assert read is not None
    return read


def many(frontends: int, **more: Any) -> dict[str, Any]:
    names = [f"{n:03d}-{'x' * 59}" for n in range(frontends)]
    return {
        "schema": 1,
        "exit_code": 0,
        "desired": None,
        "at": "2026-01-01T00:00:00Z",
        "live": {"generation": 7, "serial": None, "digest": "ab" * 32, "since": "2026-01-01T00:00:00Z", "name": ""},
        "haproxy": {"version": "3.0.11", "pid": 1, "uptime": 1, "generation": 7},
        "agent": {"version": "1", "pid": 1, "command": "run", "started": ""},
        "held": None,
        "message": "",
        "remedy": "",
        "outcome": "committed",
        "findings": [],
        "frontends": [
            {
                "name": name,
                "state": "down" if n == frontends - 1 else "up",
                "binds": [{"address": f"192.0.2.1:{n + 1}", "state": "listening", "reason": ""}],
                "backends": [name],
                "routes": [{"sni": [], "backend": name}],
                "servers_up": 4,
                "servers_total": 4,
                "sessions": n,
                "client_ip_preserved": None,
                "canary": [],
            }
            for n, name in enumerate(names)
        ],
        "backends": [
            {
                "name": name,
                "application": "smtp",
                "proxy_protocol": "v2",
                "servers_up": 4,
                "servers_total": 4,
                "servers": [
                    {
                        "name": f"s{n}",
                        "address": f"192.0.2.{n + 10}:25",
                        "weight": 1,
                        "backup": False,
                        "status": "UP",
                        "check": "L4OK",
                        "sessions": 0,
                        "handshake": None,
                    }
                    for n in range(4)
                ],
            }
            for name in names
        ],
        **more,
    }


def test_two_hundred_frontends_fold_and_the_one_that_is_down_is_seen(browser: Chrome, tmp_path: Path):
    file = tmp_path / "page.html"
    file.write_text(page.render(status(many(200)), ()))
    browser.get(f"file://{file}")
    assert browser.get_log("browser") == []
    nodes = browser.find_elements(By.CSS_SELECTOR, "svg g.node")
    assert len(nodes) <= 3 * page.MOST + 3
    assert drawn(browser, "192.0.2.1:200") == "down"
    assert drawn(browser, "and 177 more") == "up"


def test_nothing_from_a_document_is_markup(browser: Chrome, tmp_path: Path):
    nasty = "<script>alert(1)</script><b>x"
    document = many(2, message=nasty, remedy=nasty, outcome=nasty)
    document["findings"] = [{"where": nasty, "line": None, "message": nasty, "remedy": nasty}]
    document["frontends"][0]["binds"][0] |= {"state": "closed", "reason": nasty}
    text = page.render(status(document), ())
    assert "<script" not in text
    file = tmp_path / "page.html"
    file.write_text(text)
    browser.get(f"file://{file}")
    assert browser.find_elements(By.TAG_NAME, "script") == []
    assert nasty in browser.find_element(By.TAG_NAME, "body").text


@pytest.mark.parametrize("document", [many(0), many(1), many(1, haproxy=None), many(1, live=None)])
def test_every_status_is_a_page(document: dict[str, Any]):
    assert page.render(status(document), ()).startswith("<!doctype html>")


def test_there_is_a_page_before_the_first_status():
    assert "HAProxy does not answer" in page.render(None, ())


# --- as a person looks at it


@contextlib.contextmanager
def screen(browser: Chrome, width: int, scheme: str = "light") -> Iterator[None]:
    """The worked deployment on a screen of this width, as high as the page is."""
    mobile = width < 500

    def size(height: int) -> None:
        browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile},
        )

    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    size(900)
    size(browser.execute_script("return document.documentElement.scrollHeight"))
    try:
        yield
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.fixture
def worked_page(browser: Chrome, tmp_path: Path) -> Chrome:
    file = tmp_path / "page.html"
    text = page.render(status(worked.status()), worked.history(), docs="https://wiki.example.org/edgeagent/")
    file.write_text(text)
    browser.get(f"file://{file}")
    return browser


BROKEN_WORDS = """
const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), broken = [];
const range = document.createRange();
while (walk.nextNode()) {
  const parent = walk.currentNode.parentElement;
  if (!parent.checkVisibility() || parent.closest("svg, style")) continue;
  for (const match of walk.currentNode.data.matchAll(/[^\\s-]+/g)) {
    range.setStart(walk.currentNode, match.index); range.setEnd(walk.currentNode, match.index + match[0].length);
    if (new Set([...range.getClientRects()].map(box => Math.round(box.top))).size > 1) broken.push(match[0]);
  }
}
return broken;
"""


@pytest.mark.parametrize("width", [360, 390, 768, 1280])
def test_no_word_is_broken_in_the_middle(worked_page: Chrome, width: int):
    with screen(worked_page, width):
        assert worked_page.execute_script(BROKEN_WORDS) == []
        assert worked_page.execute_script("return document.documentElement.scrollWidth") <= width


def test_on_a_phone_state_and_sessions_are_on_the_screen_and_changes_have_their_names(worked_page: Chrome):
    with screen(worked_page, 390):
        for name in ("state", "sessions", "why", "by", "outcome"):
            cells = worked_page.find_elements(By.CSS_SELECTOR, f"td[data-name='{name}']:not(.none)")
            assert cells
            for cell in cells:
                box = worked_page.execute_script("return arguments[0].getBoundingClientRect()", cell)
                assert (box["left"] >= 0, box["right"] <= 390, box["height"] > 0) == (True, True, True)
                before = "return getComputedStyle(arguments[0], '::before').content"
                assert worked_page.execute_script(before, cell) == f'"{name}"'
        fine(worked_page)


LABELS_UNDER_LINES = """
const met = [];
for (const label of document.querySelectorAll("svg .node .label")) {
  const box = label.getBBox();
  for (const line of document.querySelectorAll("svg path.edge")) {
    const half = Number(line.getAttribute("stroke-width")) / 2, length = line.getTotalLength();
    for (let at = 0; at <= length; at += 1) {
      const point = line.getPointAtLength(at);
      if (point.x >= box.x - half && point.x <= box.x + box.width + half && point.y >= box.y - half &&
          point.y <= box.y + box.height + half) { met.push(label.textContent); break; }
    }
  }
  for (const other of document.querySelectorAll("svg .node rect")) {
    const one = other.getBBox();
    if (one.x < box.x + box.width && box.x < one.x + one.width &&
        one.y < box.y + box.height && box.y < one.y + one.height)
      met.push(label.textContent + " in a box");
  }
}
return met;
"""


def test_labels_are_where_no_line_is_and_texts_within_their_boxes(worked_page: Chrome):
    with screen(worked_page, 1280):
        assert worked_page.find_elements(By.CSS_SELECTOR, "svg .node .label")
        assert worked_page.execute_script(LABELS_UNDER_LINES) == []
        script = """return [...document.querySelectorAll("svg .node")].filter(node => {
            const box = node.querySelector("rect").getBBox();
            return [...node.querySelectorAll("text:not(.label)")].some(text => {
                const inner = text.getBBox();
                return inner.x + inner.width > box.x + box.width;
            }) }).map(node => node.textContent)"""
        assert worked_page.execute_script(script) == []


def test_it_says_what_words_mean_and_where_more_is(worked_page: Chrome):
    legend = worked_page.find_element(By.TAG_NAME, "dl").text
    for word, meaning in (("L4CON", "cannot be connected to"), ("INI", "not checked yet"), ("L4TOUT", "in time")):
        assert word in legend
        assert meaning in legend
    assert "L7STS" not in legend  # no server has it
    links = [link.get_attribute("href") for link in worked_page.find_elements(By.CSS_SELECTOR, "footer a")]
    assert [link.removeprefix("file://") for link in links] == [
        "/metrics", "/readyz", "https://wiki.example.org/edgeagent/",
    ]  # fmt: skip
    headline = worked_page.find_element(By.TAG_NAME, "h1").text
    assert "The desired state is not live: it is refused" in headline
    assert (
        "Handed over by key cluster@k8s-node1 from 10.0.20.101." in worked_page.find_element(By.TAG_NAME, "header").text
    )


def test_every_word_that_this_haproxy_has_for_a_check_is_explained(haproxy_binary: Path):
    """Out of the program itself. External checks (PROC...) and agent checks (HANA, CHECKED) are not made here."""
    words = re.findall(rb"\0(L[467][A-Z]{2,}|SOCKERR|INI|UNK)(?=\0)", haproxy_binary.read_bytes())
    assert len(words) > 10
    assert {word.decode() for word in words} <= page.MEANINGS.keys()


@pytest.mark.parametrize(
    ("name", "width", "scheme"), [("desktop", 1280, "light"), ("phone", 390, "light"), ("dark", 1280, "dark")]
)
def test_screenshots_for_people(worked_page: Chrome, name: str, width: int, scheme: str):
    """Kept in .cache/screenshots, to be looked at."""
    with screen(worked_page, width, scheme):
        assert worked_page.save_screenshot(str(SHOTS / f"{name}.png"))
    assert (SHOTS / f"{name}.png").stat().st_size > 20_000


def test_routes_carry_their_names():
    document = many(2)
    document["frontends"][0] |= {
        "backends": [document["backends"][1]["name"], document["backends"][0]["name"]],
        "routes": [
            {"sni": ["a.example.org", "*.example.net"], "backend": document["backends"][1]["name"]},
            {"sni": [], "backend": document["backends"][0]["name"]},
        ],
    }
    labels = [node.label for node in page.picture(status(document)).nodes]
    assert [label for label in labels if label] == ["a.example.org, *.examp…"]
    assert "a.example.org, *.example.net → " in page.render(status(document), ())
