#!/bin/sh
# What the tests need of the system: HAProxy 2.6, 3.0 and 3.2, Python 3.13 and 3.14, Postfix, Dovecot, nginx, OpenSSH, Prometheus, Chromium. As root
# on Debian this installs it; elsewhere it says what will be left out and leaves the rest to the tests, which say so again.
set -eu
cd "$(dirname "$0")/.."

if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null 2>&1; then
    echo "tests: not root on Debian: HAProxy, Postfix and Dovecot are tested with what is here already" >&2
    exit 0
fi

packages="bmake chromium chromium-driver dovecot-core dovecot-imapd dovecot-pop3d haproxy iproute2 nginx-light openssh-client openssh-server"
packages="$packages devscripts mandoc openssl postfix procps prometheus psmisc python3 shellcheck systemd"
for release in trixie forky; do
    [ -e ".cache/$release/ready" ] || packages="$packages debootstrap patchelf"
done

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

# HAProxy 3.0 and Python 3.13 are Debian 13's, HAProxy 3.2 and Python 3.14 of the one after: unpacked beside the tests, the
# programs run with their own loader and libraries.
unpack() {
    folder="$(pwd)/.cache/$1"
    [ -e "$folder/ready" ] && return
    rm -rf "$folder"
    mkdir -p .cache
    log="$(pwd)/.cache/debootstrap-$1.log"
    # A debootstrap older than the release has no script for it; that of sid fits any.
    script=$1
    [ -e "/usr/share/debootstrap/scripts/$1" ] || script=sid
    # shellcheck disable=SC2016  # apt's own word
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Label: Debian' | head -n 1)
    debootstrap --variant=minbase --include=haproxy,python3-venv "$1" "$folder" "$mirror" "$script" >"$log" 2>&1 ||
        { tail -n 30 "$log" >&2; exit 1; }
    loader=$(find "$folder/usr/lib64" "$folder/usr/lib" -name 'ld-linux-*.so.*' | head -n 1)
    library=$(dirname "$(find "$folder/usr/lib" -name 'libc.so.6' | head -n 1)")
    for program in sbin/haproxy bin/python3; do
        # Beside the original: Python looks for its own library from there.
        cp "$(readlink -f "$folder/usr/$program")" "$folder/usr/$program.here"
        patchelf --force-rpath --set-interpreter "$loader" --set-rpath "$library" "$folder/usr/$program.here"
    done
    touch "$folder/ready"
}
unpack trixie
unpack forky
