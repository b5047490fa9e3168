#!/bin/sh
# What the tests need of the system: HAProxy 2.6 and 3.0, Postfix, Dovecot, nginx, OpenSSH, Prometheus, Chromium. As root
# on Debian this installs it; elsewhere it says what will be left out and leaves the rest to the tests, which say so again.
set -eu
cd "$(dirname "$0")/.."

if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null 2>&1; then
    echo "tests: not root on Debian: HAProxy, Postfix and Dovecot are tested with what is here already" >&2
    exit 0
fi

packages="bmake chromium chromium-driver dovecot-core dovecot-imapd dovecot-pop3d haproxy iproute2 nginx-light openssh-client openssh-server"
packages="$packages devscripts openssl postfix procps prometheus psmisc python3 shellcheck"
trixie=.cache/trixie
[ -x "$trixie/haproxy-3.0" ] || packages="$packages debootstrap patchelf"

missing=""
for package in $packages; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing="$missing $package"
done
if [ -n "$missing" ]; then
    # Installing a mail server must not start one on the machine that tests.
    export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1
    apt-get update -qq
    # shellcheck disable=SC2086  # a list of words on purpose
    apt-get install -qq -y --no-install-recommends $missing </dev/null >/dev/null
fi

# HAProxy 3.0 is Debian 13's: its files are unpacked beside the tests and run with their own loader.
if [ ! -x "$trixie/haproxy-3.0" ]; then
    rm -rf "$trixie"
    mkdir -p .cache
    folder="$(pwd)/$trixie"
    log="$(pwd)/.cache/debootstrap.log"
    debootstrap --variant=minbase --include=haproxy trixie "$folder" >"$log" 2>&1 || { tail -n 30 "$log" >&2; exit 1; }
    loader=$(find "$folder/usr/lib64" "$folder/usr/lib" -name 'ld-linux-*.so.*' | head -n 1)
    library=$(dirname "$(find "$folder/usr/lib" -name 'libc.so.6' | head -n 1)")
    cp "$folder/usr/sbin/haproxy" "$folder/haproxy-3.0.new"
    patchelf --force-rpath --set-interpreter "$loader" --set-rpath "$library" "$folder/haproxy-3.0.new"
    mv "$folder/haproxy-3.0.new" "$folder/haproxy-3.0"
fi
