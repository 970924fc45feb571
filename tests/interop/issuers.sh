#!/usr/bin/env bash
# Fetches the authorization servers of the interoperability tests into target/interop: the package oidc-provider of npm, and the distribution of Keycloak from
# Maven (160 MB). What cannot be had is named, and its flows are skipped.
set -uo pipefail
cd "$(dirname "$0")/../.."
dir=$PWD/target/interop
oidc_version=9.13.3
oidc_integrity=sha512-WmNDX9dLeItBmIqGqspmX5u6Cc7VVMrKUw2InX2T16+bwUJ8m/N5rJ3Ed+YKxE5aZqLp4YqwEi6kMJx4Ui5ffw==
keycloak_version=26.5.6
keycloak_sha256=490189d9dff05272432d51f71a069462eeca97f2920a694d539a1e6c26a5a347
mkdir -p "$dir"
if command -v npm >/dev/null && [ ! -d "$dir/oidc-provider/node_modules/oidc-provider" ]; then
  rm -rf "$dir/oidc-provider" && mkdir -p "$dir/oidc-provider"
  (
    cd "$dir/oidc-provider" && echo '{ "private": true }' >package.json &&
      timeout 180 npm install --no-audit --no-fund --ignore-scripts "oidc-provider@$oidc_version" &&
      grep -qF "$oidc_integrity" package-lock.json
  ) >"$dir/oidc-provider.log" 2>&1 || {
    rm -rf "$dir/oidc-provider/node_modules"
    echo "interop: the package oidc-provider could not be installed: target/interop/oidc-provider.log"
  }
fi
if [ ! -x "$dir/keycloak/bin/kc.sh" ]; then
  if command -v mvn >/dev/null && command -v java >/dev/null && command -v unzip >/dev/null; then
    (
      set -e
      repository=$dir/keycloak-maven
      timeout 600 mvn -q -B dependency:get -Dmaven.repo.local="$repository" -Dtransitive=false \
        -Dartifact="org.keycloak:keycloak-quarkus-dist:$keycloak_version:zip"
      zip=$repository/org/keycloak/keycloak-quarkus-dist/$keycloak_version/keycloak-quarkus-dist-$keycloak_version.zip
      echo "$keycloak_sha256  $zip" | sha256sum --check --quiet
      rm -rf "$dir/keycloak" "$dir/keycloak-$keycloak_version"
      unzip -q "$zip" -d "$dir"
      mv "$dir/keycloak-$keycloak_version" "$dir/keycloak"
      rm -rf "$repository"
    ) >"$dir/keycloak.log" 2>&1 || echo "interop: Keycloak could not be fetched: target/interop/keycloak.log"
  else
    echo "interop: Keycloak could not be fetched: no mvn, java or unzip"
  fi
fi
exit 0
