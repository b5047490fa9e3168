#!/bin/sh
# A real kube-apiserver into .cache/cluster, once: built from Debian's own source of Kubernetes (1.20), with Debian's Go.
# About ten minutes on two cores, less on fast ones; etcd is Debian's. As root on Debian.
set -eu
cd "$(dirname "$0")/../.."
folder="$(pwd)/.cache/cluster"

command -v apt-get >/dev/null 2>&1 || { echo "tests: kube-apiserver is built from Debian's sources: Debian is needed" >&2; exit 1; }
if ! command -v etcd >/dev/null 2>&1 || ! command -v etcdctl >/dev/null 2>&1; then
    # Installing a database must not start one on the machine that tests.
    export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1
    apt-get update -qq
    apt-get install -qq -y --no-install-recommends etcd-client etcd-server </dev/null >/dev/null
fi
[ -x "$folder/kube-apiserver" ] && exit 0

export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1
apt-get update -qq
apt-get install -qq -y --no-install-recommends dpkg-dev gcc golang-go jq libc6-dev make rsync </dev/null >/dev/null

# This machine's own package sources, with those of source packages beside them, in a folder apart.
rm -rf "$folder/work"
mkdir -p "$folder/work/sources" "$folder/work/lists" "$folder/work/src/k8s.io"
for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources; do
    [ -f "$file" ] || continue
    sed -E 's/^Types:.*/Types: deb-src/; s/^deb[[:space:]]/deb-src /' "$file" > "$folder/work/sources/$(basename "$file")"
done
if [ -f "$folder/work/sources/sources.list" ]; then
    mv "$folder/work/sources/sources.list" "$folder/work/sources/main.list"
fi
apt() {
    apt-get -qq -o Dir::Etc::sourcelist=/dev/null -o Dir::Etc::sourceparts="$folder/work/sources" \
        -o Dir::State::lists="$folder/work/lists" "$@"
}
apt update || echo "tests: some package sources have no source packages; going on" >&2

log="$folder/build.log"
build() {
    cd "$folder/work/src/k8s.io"
    apt source --download-only kubernetes
    dpkg-source --no-check -x kubernetes_*.dsc kubernetes
    cd kubernetes
    export GO111MODULE=off GOPATH="$folder/work" GOCACHE="$folder/work/cache" GOFLAGS=
    make generated_files
    go build -o "$folder/kube-apiserver.new" k8s.io/kubernetes/cmd/kube-apiserver
}
echo "building kube-apiserver, once: about ten minutes (progress in $log)" >&2
(set -e; build) > "$log" 2>&1 </dev/null || { tail -n 30 "$log" >&2; exit 1; }
mv "$folder/kube-apiserver.new" "$folder/kube-apiserver"
chmod -R u+w "$folder/work"
rm -rf "$folder/work"
