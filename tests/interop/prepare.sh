#!/usr/bin/env bash
# Fetches the client libraries of the interoperability tests into target/interop: the packages `ws` for Node.js and `grpcio` for Python, and the tool h2spec.
set -uo pipefail
cd "$(dirname "$0")/../.."
dir=target/interop
mkdir -p "$dir"
if command -v npm >/dev/null && [ ! -d "$dir/node_modules/ws" ]; then
  (cd "$dir" && npm install --no-save --no-audit --no-fund --prefix . ws >npm.log 2>&1) || echo "interop: the package ws could not be installed: $dir/npm.log"
fi
if command -v python3 >/dev/null && [ ! -x "$dir/venv/bin/python" ]; then
  { python3 -m venv "$dir/venv" && "$dir/venv/bin/pip" install --quiet grpcio; } >"$dir/pip.log" 2>&1 || echo "interop: the package grpcio could not be installed: $dir/pip.log"
fi
if command -v go >/dev/null && [ ! -x "$dir/h2spec" ]; then
  GOBIN="$PWD/$dir" go install github.com/summerwind/h2spec/cmd/h2spec@v2.2.1+incompatible >"$dir/go.log" 2>&1 ||
    GOBIN="$PWD/$dir" go install github.com/summerwind/h2spec/cmd/h2spec@latest >"$dir/go.log" 2>&1 || echo "interop: h2spec could not be installed: $dir/go.log"
fi
exit 0
