"""Exercises every call of a SPIFFE Workload API socket with the package `spiffe`: workload_api.py SOCKET [AUDIENCE]. One line per call."""
import sys
from spiffe import WorkloadApiClient, X509Source

socket, audience = sys.argv[1], (sys.argv + ["rondel-interop"])[2]
failed = 0


def show(name, call):
    global failed
    try:
        value, told = call()
        print(f"{name}: {told}")
        return value
    except Exception as error:
        failed += 1
        print(f"{name}: FAILED: {type(error).__name__}: {error}")
        return None


def x509_context(client):
    context = client.fetch_x509_context(timeout=5)
    svid, bundles = context.default_svid, context.x509_bundle_set.bundles
    domains = sorted(f"{bundle.trust_domain.name}={len(bundle.x509_authorities)}" for bundle in bundles)
    return svid, f"{svid.spiffe_id} chain {len(svid.cert_chain)} bundles {' '.join(domains)}"


def x509_source():
    with X509Source(socket_path=f"unix:{socket}", timeout_in_seconds=5) as source:
        return source.svid, str(source.svid.spiffe_id)


def jwt_svid(client):
    svid = client.fetch_jwt_svid(audience={audience}, timeout=5)
    return svid, f"{svid.spiffe_id} for {' '.join(sorted(svid.audience))}"


def jwt_bundles(client):
    bundles = client.fetch_jwt_bundles(timeout=5).bundles
    return bundles, " ".join(sorted(f"{bundle.trust_domain.name}={len(bundle.jwt_authorities)}" for bundle in bundles))


def validated(client, token):
    svid = client.validate_jwt_svid(token, audience, timeout=5)
    return svid, str(svid.spiffe_id)


def refused(client, token):
    try:
        client.validate_jwt_svid(token, "another-audience", timeout=5)
    except Exception as error:
        return True, f"refused: {type(error).__name__}"
    raise AssertionError("accepted")


with WorkloadApiClient(socket_path=f"unix:{socket}") as client:
    show("fetch_x509_context", lambda: x509_context(client))
    show("fetch_x509_svids", lambda: ((svids := client.fetch_x509_svids(timeout=5)), f"{len(svids)}"))
    show("fetch_x509_bundles", lambda: ((got := client.fetch_x509_bundles(timeout=5)), f"{len(got.bundles)}"))
    show("X509Source", x509_source)
    jwt = show("fetch_jwt_svid", lambda: jwt_svid(client))
    show("fetch_jwt_bundles", lambda: jwt_bundles(client))
    if jwt is not None:
        show("validate_jwt_svid", lambda: validated(client, jwt.token))
        show("validate_jwt_svid of another audience", lambda: refused(client, jwt.token))
sys.exit(1 if failed else 0)
