#!/bin/sh
# root.sh SUITE FOLDER: a small Debian with systemd and sshd in FOLDER, made once and never written to by a guest.
set -eu

suite=$1
folder=$2
[ ! -e "$folder.ready" ] || exit 0

mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep -E '/debian/?$' | head -n 1)
if [ -z "$mirror" ]; then
    echo "apt has no Debian archive to make a $suite root from: add one to its sources" >&2
    exit 1
fi

include=systemd,systemd-sysv,dbus,nftables,openssh-server,iproute2,procps
rm -rf "$folder"
mmdebstrap --quiet --variant=minbase --include="$include" \
    --aptopt='Acquire::Check-Valid-Until "false"' \
    --dpkgopt='path-exclude=/usr/share/doc/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' \
    --customize-hook='chroot "$1" systemctl --quiet enable systemd-networkd ssh' \
    --customize-hook='chroot "$1" passwd --quiet --delete root' \
    "$suite" "$folder" "$mirror"
# A guest reaches no archive, and each has an identity of its own.
: >"$folder/etc/apt/sources.list"
: >"$folder/etc/machine-id"
rm -f "$folder"/etc/ssh/ssh_host_*
# Journals outlive a power cut.
install -d "$folder/etc/systemd/journald.conf.d" "$folder/var/log/journal"
printf '[Journal]\nStorage=persistent\n' >"$folder/etc/systemd/journald.conf.d/guest.conf"
: >"$folder.ready"
