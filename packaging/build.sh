#!/bin/sh
# build.sh TARGET PROFILE REVISION FOLDER [CRATE…]: packages the binaries that were built in TARGET/PROFILE, with the
# pages that TARGET/ci/nightlatch-pages writes, into FOLDER.
set -eu
cd "$(dirname "$0")/.."

target=$1
profile=$2
revision=$3
folder=$4
shift 4
[ $# -gt 0 ] || set -- nightlatch-agent nightlatch-server nightlatch-cli
fast=
[ "$profile" = dist ] || fast=--fast

umask 022
export CARGO_TARGET_DIR="$target"
rm -rf "$target/$profile/pages"
"$target/ci/nightlatch-pages" "$target/$profile/pages"
find "$target/$profile/pages" -path '*/man/*' -type f -exec gzip -9n {} +
mkdir -p "$folder"
rm -f "$folder"/*.deb
for crate; do
    cargo deb --quiet --locked --no-build $fast --profile "$profile" --deb-revision "$revision" \
        --package "$crate" --output "$folder/"
done
