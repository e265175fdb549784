#!/bin/sh
# prerequisites.sh lab|packages|test: installs by apt what the lab, the packages, or all of the tests need beside Rust.
set -eu

PATH=$PATH:/usr/sbin:/sbin
missing=

need() { # COMMAND PACKAGE…
    command -v "$1" >/dev/null 2>&1 && return
    shift
    missing="$missing $*"
}

need cc gcc libc6-dev
need make make
need ip iproute2
need nft nftables
need sshd openssh-server
need ssh openssh-client
need conntrack conntrack
need unshare util-linux
need uptime procps
case ${1:-} in
packages | test)
    need dpkg-shlibdeps dpkg-dev
    need lintian lintian
    ;;
esac
if [ "${1:-}" = test ]; then
    need faketime faketime
    need hping3 hping3
    need mmdebstrap mmdebstrap
    need systemd-nspawn systemd-container
    need npm nodejs npm
    need systemd-analyze systemd
fi
[ -n "$missing" ] || exit 0

if [ "$(id -u)" != 0 ]; then
    echo "missing:$missing; install them, or run this as root" >&2
    exit 1
fi
if ! command -v apt-get >/dev/null; then
    echo "missing:$missing; this script installs on Debian only" >&2
    exit 1
fi
echo "installing:$missing"

# The lab runs sshd in its own namespaces; installing it must not open the machine itself.
quiet=
if [ ! -e /usr/sbin/policy-rc.d ]; then
    quiet=/usr/sbin/policy-rc.d
    trap 'rm -f "$quiet"' EXIT
    printf '#!/bin/sh\nexit 101\n' >"$quiet"
    chmod +x "$quiet"
fi
case $missing in
*openssh-server*) new_sshd=1 ;;
*) new_sshd= ;;
esac

export DEBIAN_FRONTEND=noninteractive
apt-get -q -o DPkg::Lock::Timeout=600 update
# shellcheck disable=SC2086 # a list of words
apt-get -y -q --no-install-recommends -o DPkg::Lock::Timeout=600 install $missing
if [ -n "$new_sshd" ] && [ -d /run/systemd/system ]; then
    systemctl --quiet disable ssh.service
fi
