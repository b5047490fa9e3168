#!/bin/sh
# What was shown on Linux only, on a real FreeBSD or pfSense box: pass or FAIL per line. As root; see docs/freebsd-smoke.md.
# shellcheck disable=SC2317 # most functions are called by `line`
set -u

[ $# -eq 1 ] || { echo "usage: smoke.sh edgeagent.pyz" >&2; exit 2; }
[ "$(id -u)" -eq 0 ] || { echo "smoke.sh: as root, please" >&2; exit 2; }
file=$1
python=${PYTHON:-$(find /usr/local/bin -name 'python3.1[1-9]' | sort | head -n 1)}
[ -x "$python" ] || { echo "smoke.sh: no Python 3.11 or newer in /usr/local/bin; PYTHON=/path/to/it" >&2; exit 2; }
root=${SMOKE_ROOT:-}
etc=/usr/local/etc/edgeagent
rc=/usr/local/etc/rc.d/edgeagent
failed=0
for _place in "$etc" /usr/local/libexec/edgeagent /usr/local/var/edgeagent /var/db/edgeagent /usr/local/bin/agent; do
	[ ! -e "$_place" ] || { echo "smoke.sh: $_place is there: this is no spare box" >&2; exit 2; }
done
said=$(mktemp) || exit 2
# A program called `agent`, as there are many: rc.subr must not take it for ours.
namesake=$(mktemp -d) || exit 2
cp /bin/sleep "$namesake/agent"
"$namesake/agent" 900 &
other=$!

line()
{
	_what=$1
	shift
	if "$@" >"$said" 2>&1; then
		echo "pass  $_what"
	else
		echo "FAIL  $_what"
		sed 's/^/      /' "$said"
		failed=$((failed + 1))
	fi
}

# Until it is so, for so many seconds.
within()
{
	_left=$1
	shift
	until "$@"; do
		[ "$_left" -gt 0 ] || return 1
		sleep 1
		_left=$((_left - 1))
	done
}

says() { "$python" - "$1" "$2" <<'PY'
import socket, sys
with socket.create_connection(("127.0.0.1", int(sys.argv[1])), 2) as one:
    one.settimeout(2)
    sys.exit(sys.argv[2] not in one.recv(100).decode())
PY
}

# Two servers that greet and then echo; a third listener only holds a port.
servers()
{
	"$python" - <<'PY' &
import socketserver, threading
class Greeter(socketserver.BaseRequestHandler):
    def handle(self):
        name = "one" if self.server.server_address[1] == 2601 else "two"
        self.request.sendall(f"220 {name}\n".encode())
        while data := self.request.recv(1000):
            self.request.sendall(data)
class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = daemon_threads = True
for port in (2601, 2602, 8025, 8026):
    threading.Thread(target=Server(("127.0.0.1", port), Greeter).serve_forever).start()
PY
	greeters=$!
}

desired()
{
	cat >"$etc/desired.new" <<Y
version: 1
frontends:
  smoke: {bind: ["127.0.0.1:2525"], backend: pool, maxconn: $2}
$3
backends:
  pool: {proxy_protocol: none, servers: {a: {address: "127.0.0.1:$1"}}}
Y
	mv "$etc/desired.new" "$etc/desired.yaml"
}

# A session that is open over a change, and answers after it.
session()
{
	"$python" - "$etc" <<'PY'
import os, socket, sys, time
with socket.create_connection(("127.0.0.1", 2525), 2) as one:
    one.settimeout(5)
    one.recv(100)
    text = open(f"{sys.argv[1]}/desired.yaml").read()
    open(f"{sys.argv[1]}/desired.new", "w").write(text.replace("maxconn: 50", "maxconn: 51"))
    os.rename(f"{sys.argv[1]}/desired.new", f"{sys.argv[1]}/desired.yaml")
    time.sleep(4)
    one.sendall(b"still")
    sys.exit(one.recv(100) != b"still")
PY
}

agent() { /usr/local/bin/agent --settings "$etc/agent.toml" "$@"; }
named() { [ -n "$(haproxy)" ]; }
child() { cat /var/run/edgeagent.pid; }
haproxy() { pgrep -x edge-haproxy | head -n 1; }
running() { $rc status >/dev/null 2>&1; }
same_agent_after_start() { _before=$(child) && $rc start && [ "$(child)" = "$_before" ]; }
quarantined() { agent status | grep -q "127.0.0.1:8025 .*quarantined.*python"; }
overlap_quarantined() { agent status | grep -q "0.0.0.0:8026 .*quarantined.*127.0.0.1:8026"; }
# What the host was taken for, said by the installer and by doctor: pfSense where its files are.
host_is_known()
{
	_expected=FreeBSD
	[ ! -e /etc/pfSense-rc ] || _expected=pfSense
	[ "$(uname -s)" != Linux ] || [ "$_expected" = pfSense ] || _expected=Linux
	agent doctor | grep "^ok *host .*taken for $_expected, by"
}
# The folder of the desired state is gone for a moment (kqueue's watch ends); then a change is seen all the same.
folder_was_gone()
{
	mv "$etc" "$etc.aside" && sleep 2 && mv "$etc.aside" "$etc" && sleep 3
	desired 2601 50 "" && within 4 says 2525 one
}
pid_files_wiped()
{
	_before=$(child)
	rm -f /var/run/edgeagent.pid /var/run/edgeagent-supervisor.pid
	running && $rc start && [ "$(agent status --pid)" = "$_before" ]
}
stops_without_pid_files() { $rc stop && ! agent status --pid && [ -z "$(pgrep -f 'edgeagent-.*pyz.* run')" ]; }
# daemon(8) of 2024 loses a SIGTERM while it waits to start another child.
stops_between_two_children()
{
	$rc start && kill -KILL "$(child)" && sleep 1 && $rc stop && ! agent status --pid
}
configtest_says_so()
{
	cp "$etc/desired.yaml" "$etc/good" && echo "version: 2" >"$etc/desired.yaml"
	$rc configtest
	_code=$?
	mv "$etc/good" "$etc/desired.yaml"
	[ "$_code" -eq 3 ]
}
namesake_lives() { kill -0 "$other"; }
killed_by_name() { killall haproxy 2>/dev/null; says 2525 220; }
comes_back() { _before=$(haproxy); kill -KILL "$(child)"; within 10 running && [ "$(haproxy)" = "$_before" ]; }
stops_and_serves() { $rc stop && ! running && says 2525 220; }
adopts() { _before=$(haproxy); $rc start && [ "$(haproxy)" = "$_before" ]; }
doctor_reads() { agent doctor; [ $? -ne 4 ]; }
nothing_left() { [ ! -e /usr/local/libexec/edgeagent ] && [ ! -e "$etc" ] && ! pgrep -x edge-haproxy; }
cleaned() { $rc stopall && agent uninstall ${root:+--root "$root"} --purge && nothing_left; }

# shellcheck disable=SC2086 # none or two words
set -- install ${root:+--root "$root"}
line "install" "$python" "$file" "$@"
line "install again changes nothing" sh -c "$python $file $* | grep -q 'is installed already'"
line "agent --version" agent --version
servers
trap 'kill $greeters $other 2>/dev/null; rm -rf "$said" "$namesake"' EXIT
desired 2601 50 ""
line "start waits until the agent answers" $rc start
line "status is 0" $rc status
line "start again is the same agent" same_agent_after_start
line "a process called agent is left alone" namesake_lives
line "the host is taken for what it is" host_is_known
line "a process named edge-haproxy serves" within 5 says 2525 one
line "it has that name" named
desired 2602 50 ""
line "a change goes live within two seconds" within 2 says 2525 two
line "a reload keeps an open session" session
desired 2602 51 '  taken: {bind: ["127.0.0.1:8025"], backend: pool}'
line "an address in use is quarantined, with who holds it" within 5 quarantined
desired 2602 51 '  wide: {bind: ["0.0.0.0:8026"], backend: pool}'
line "one that overlaps a foreign listener too" within 5 overlap_quarantined
desired 2602 51 ""
line "killall haproxy leaves ours alone" killed_by_name
line "the agent killed is back, with the same HAProxy" comes_back
line "stop leaves HAProxy serving" stops_and_serves
line "start adopts it" adopts
line "doctor reads this host" doctor_reads
line "configtest exits as agent check" configtest_says_so
line "the folder was gone for a moment, and is watched again" folder_was_gone
line "without its pid files the agent is known" pid_files_wiped
line "and stopped" stops_without_pid_files
line "stop between two children leaves none" stops_between_two_children
line "stopall and uninstall --purge leave nothing" cleaned
[ "$failed" -eq 0 ] && echo "all passed" && exit 0
echo "$failed failed"
exit 1
