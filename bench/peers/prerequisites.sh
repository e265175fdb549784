#!/bin/sh
# prerequisites.sh DIR: gets the peers, by apt what can be installed, below DIR what can't or shouldn't.
set -eu

PATH=$PATH:/usr/sbin:/sbin
dir=$1
mkdir -p "$dir"
cd "$dir"

missing=
for pair in fwknop:fwknop-client fwknopd:fwknop-server knockd:knockd firewalld:firewalld \
    dbus-daemon:dbus-daemon iptables-nft:iptables ss:iproute2; do
    command -v "${pair%%:*}" >/dev/null 2>&1 || missing="$missing ${pair#*:}"
done
if [ -n "$missing" ]; then
    echo "installing:$missing"
    # Installing them must start nothing here: they run in namespaces of the bench.
    quiet=
    if [ ! -e /usr/sbin/policy-rc.d ]; then
        quiet=/usr/sbin/policy-rc.d
        trap 'rm -f "$quiet"' EXIT
        # A shell that a signal ends takes no trap of its exit by itself.
        trap 'exit 130' INT
        trap 'exit 143' TERM HUP
        printf '#!/bin/sh\nexit 101\n' >"$quiet"
        chmod +x "$quiet"
    fi
    export DEBIAN_FRONTEND=noninteractive
    apt-get -q -o DPkg::Lock::Timeout=600 update
    # shellcheck disable=SC2086 # a list of words
    apt-get -y -q --no-install-recommends -o DPkg::Lock::Timeout=600 install $missing
fi

# Its installation registers with a service on the internet, and fails without; its programs need none.
if [ ! -x crowdsec/usr/bin/crowdsec ]; then
    mkdir -p debs
    (cd debs && apt-get -q -o APT::Sandbox::User=root download crowdsec crowdsec-firewall-bouncer)
    for package in debs/*.deb; do
        dpkg -x "$package" crowdsec
    done
fi

if [ ! -x letmein/bin/letmein ] || [ ! -x letmein/bin/letmeind ] || [ ! -x letmein/bin/letmeinfwd ]; then
    install() {
        cargo install --quiet --version 12.6.2 --root letmein --target-dir letmein-build "$@"
    }
    install --locked letmeind letmeinfwd
    # Its lock file names versions that not every registry has.
    install --locked letmein || install letmein
fi
