#!/bin/sh
# boot.sh FOLDER BASE MACHINE: runs a guest until it is powered off or killed; its writes go to FOLDER/upper. To be
# started in the network namespace of the bridge, with mounts of its own.
set -eu

folder=$1
base=$2
machine=$3
mount --make-rprivate /
mount -t overlay overlay -o "lowerdir=$base,upperdir=$folder/upper,workdir=$folder/work" "$folder/root"
# Where another init than systemd runs the machine, this is the only place that sees unified control groups.
mount -t cgroup2 cgroup2 /sys/fs/cgroup
group=/sys/fs/cgroup/$machine
mkdir -p "$group"
echo $$ >"$group/cgroup.procs"

# 133: the guest asked for a reboot. Each boot has a network namespace of its own, so that no rule outlives one.
code=133
while [ "$code" = 133 ]; do
    code=0
    systemd-nspawn --quiet --register=no --keep-unit --directory="$folder/root" --machine="$machine" \
        --network-bridge=bridge --resolv-conf=off --timezone=off --link-journal=no --console=pipe \
        --boot -- --show-status=1 --log-target=journal-or-kmsg || code=$?
done

echo $$ >/sys/fs/cgroup/cgroup.procs
find "$group" -depth -type d -exec rmdir {} + || true
exit "$code"
