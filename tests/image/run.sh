#!/usr/bin/env bash
# Builds the cpu image and uses it as a person would. $1: the Python to test with.
# Prints SKIP and why where the tools for containers are not there and can't be installed.
set -euo pipefail
cd "$(dirname "$0")/../.."

skip() {
    echo "SKIP test-image: $*"
    exit 77 # nothing was tested
}

packages=(buildah podman runc debootstrap openssh-client chromium chromium-driver git)
programs=(buildah podman runc debootstrap ssh chromium chromedriver git)
missing=()
for program in "${programs[@]}"; do
    PATH="$PATH:/usr/sbin:/sbin" command -v "$program" > /dev/null || missing+=("$program")
done
if ((${#missing[@]})); then
    command -v apt-get > /dev/null || skip "${missing[*]} not found, and there is no apt-get to install them"
    [ "$(id -u)" = 0 ] || skip "${missing[*]} not found, and only root may install them"
    (apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${packages[@]}") \
        > /dev/null || skip "${missing[*]} not found, and apt-get could not install them"
fi
[ "$(id -u)" = 0 ] || skip "debootstrap needs root"
export PATH="$PATH:/usr/sbin:/sbin"
exec "$1" -m pytest -s -m image tests/image "${@:2}"
