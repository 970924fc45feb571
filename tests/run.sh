#!/usr/bin/env bash
# Runs every test of the workspace and says how many ran. Fails if one failed or if none ran.
set -uo pipefail
cd "$(dirname "$0")/.."
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# What a request costs is counted on the sidecar as it is shipped; without valgrind that test names itself as skipped.
if command -v valgrind >/dev/null; then
  cargo build --locked --release --package proxy --bin rondel-proxy || exit 1
  export RONDEL_GUARD_PROXY="$PWD/target/release/rondel-proxy"
fi
cargo test --locked --workspace --no-fail-fast 2>&1 | tee "$log"
status=${PIPESTATUS[0]}
read -r passed failed < <(awk '/^test result:/ { for (i = 1; i < NF; i++) { if ($(i+1) == "passed;") p += $i; if ($(i+1) == "failed;") f += $i } } END { print p + 0, f + 0 }' "$log")
echo
echo "$passed passed, $failed failed"
if [ "$status" -ne 0 ] || [ "$failed" -ne 0 ]; then exit 1; fi
if [ "$passed" -eq 0 ]; then echo "no test ran" >&2; exit 1; fi
