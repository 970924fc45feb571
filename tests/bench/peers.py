"""The pairs of sidecars that are measured: what each is started with, and why one cannot be.

Every pair stands in the same two network namespaces. The client calls the service's address (10.77.1.2:18080 for HTTP/1.1,
:18081 for h2c); nftables leads that to the client's sidecar, which speaks mutual TLS 1.3 to the server's, which speaks to the
backend on loopback. One worker each, both on one core.
"""

import glob
import json
import os
import shutil
import subprocess

CLIENT, SERVER = "10.77.1.1", "10.77.1.2"
#: Where the client's sidecar takes redirected connections: HTTP/1.1 and h2c.
OUT = {18080: 15001, 18081: 15011}
#: Where the server's sidecar takes mutual TLS for each.
TLS = {18080: 15006, 18081: 15016}
#: Where Rondel's control plane listens, on the bridge of its pods.
CONTROL = "10.77.0.1:7400"
SAN = "spiffe://shop.example/ns/shop/sa/%s"


def found(program):
    """Where a program is, also among the servers that are not on everybody's PATH."""
    return shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")


def run(*command, **options):
    output = subprocess.run(command, capture_output=True, text=True, **options)
    if output.returncode:
        raise RuntimeError(f"{' '.join(command)}: {output.stderr.strip()}")
    return output.stdout


def certificates(folder):
    """An authority and a leaf for each side: P-256, a SPIFFE ID, and a DNS name for the peers that cannot match a URI."""
    os.makedirs(folder, exist_ok=True)
    path = lambda name: f"{folder}/{name}"
    if os.path.exists(path("server.both")):
        return
    key = lambda name: run("openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", path(name))
    key("ca.key")
    run("openssl", "req", "-x509", "-new", "-key", path("ca.key"), "-days", "30", "-subj", "/CN=bench", "-out", path("ca.pem"),
        "-addext", "keyUsage=critical,keyCertSign,cRLSign")
    for name in ("client", "server"):
        key(f"{name}.key")
        run("openssl", "req", "-new", "-key", path(f"{name}.key"), "-subj", f"/CN={name}", "-out", path(f"{name}.csr"))
        with open(path("extensions"), "w") as file:
            file.write("keyUsage=critical,digitalSignature\nextendedKeyUsage=serverAuth,clientAuth\n"
                       f"subjectAltName=URI:{SAN % name},DNS:{name}.shop.example\n")
        run("openssl", "x509", "-req", "-in", path(f"{name}.csr"), "-CA", path("ca.pem"), "-CAkey", path("ca.key"), "-days", "30",
            "-extfile", path("extensions"), "-out", path(f"{name}.pem"))
        with open(path(f"{name}.both"), "w") as both:
            both.write(open(path(f"{name}.pem")).read() + open(path(f"{name}.key")).read())


def scratch(folder, name):
    """nginx's folders for what it does not hold in memory; none of it should be used."""
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    return "".join(f"{kind}_temp_path {folder}/{name}-{kind};" for kind in kinds)


def nginx_conf(folder, name, body):
    path = f"{folder}/{name}.conf"
    with open(path, "w") as file:
        file.write(f"""user root; daemon off; worker_processes 1; pid {folder}/{name}.pid; error_log {folder}/{name}.err;
events {{ worker_connections 8000; }}
http {{ access_log off; keepalive_timeout 75s; keepalive_requests 1000000000; {scratch(folder, name)}
{body} }}
""")
    return [found("nginx"), "-c", path]


def backend(folder):
    """The application: 1 KiB at `/`, 1 MiB at `/big`."""
    os.makedirs(f"{folder}/www/bench.Echo", exist_ok=True)
    for name, size in (("big", 1 << 20), ("bench.Echo/Call", 1024)):
        with open(f"{folder}/www/{name}", "w") as file:
            file.write("x" * size)
    small = "0123456789abcdef" * 64
    http1 = nginx_conf(folder, "backend", f"""sendfile on; open_file_cache max=16; server {{ listen 0.0.0.0:18080 backlog=4096;
  root {folder}/www; location = /big {{ }} location / {{ return 200 "{small}"; }} }}""")
    http2 = [found("nghttpd"), "--no-tls", "--address=0.0.0.0", "-m1024", "-d", f"{folder}/www", "18081"]
    return [http1, http2]


def nginx(folder, keys):
    tls = lambda word, own: (f"{word}_certificate {keys}/{own}.pem; {word}_certificate_key {keys}/{own}.key;")
    out = "".join(f"""
upstream s{port} {{ server {SERVER}:{TLS[port]}; keepalive 512; keepalive_requests 1000000000; }}
server {{ listen {OUT[port]}{' http2' if h2 else ''} backlog=4096; http2_max_concurrent_streams 1024;
  location / {{ {call}; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $http_host; }} }}"""
        for port, h2, call in ((18080, False, "proxy_pass https://s18080"), (18081, True, "grpc_pass grpcs://s18081")))
    checks = "".join(f"{tls(word + '_ssl', 'client')} {word}_ssl_trusted_certificate {keys}/ca.pem; {word}_ssl_verify on; "
                     f"{word}_ssl_name server.shop.example; {word}_ssl_protocols TLSv1.3;" for word in ("proxy", "grpc"))
    inside = "".join(f"""
upstream a{port} {{ server 127.0.0.1:{port}; keepalive 512; keepalive_requests 1000000000; }}
server {{ listen {TLS[port]} ssl{' http2' if h2 else ''} backlog=4096; http2_max_concurrent_streams 1024; if ($known = 0) {{ return 403; }}
  location / {{ {call}; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $http_host; }} }}"""
        for port, h2, call in ((18080, False, "proxy_pass http://a18080"), (18081, True, "grpc_pass grpc://a18081")))
    client = nginx_conf(folder, "nginx-client", "proxy_max_temp_file_size 0;" + checks + out)
    server = nginx_conf(folder, "nginx-server", f"""proxy_max_temp_file_size 0; {tls('ssl', 'server')} ssl_verify_client on;
ssl_client_certificate {keys}/ca.pem; ssl_protocols TLSv1.3; map $ssl_client_s_dn $known {{ default 0; "CN=client" 1; }} {inside}""")
    return {"client": client, "server": server}


def haproxy(folder, keys, between):
    common = """global
  nbthread 1
  maxconn 8000
defaults
  mode http
  timeout connect 5s
  timeout client 60s
  timeout server 60s
  timeout http-keep-alive 60s
  http-reuse always
"""
    out, inside = common, common
    for port, h2 in ((18080, ""), (18081, " proto h2")):
        alpn = "h2" if h2 or between == "h2" else "http/1.1"
        out += f"""frontend o{port}
  bind :{OUT[port]}{h2}
  default_backend s{port}
backend s{port}
  server s {SERVER}:{TLS[port]} ssl crt {keys}/client.both ca-file {keys}/ca.pem verify required verifyhost server.shop.example ssl-min-ver TLSv1.3 alpn {alpn}
"""
        inside += f"""frontend i{port}
  bind :{TLS[port]} ssl crt {keys}/server.both ca-file {keys}/ca.pem verify required ssl-min-ver TLSv1.3 alpn h2,http/1.1
  http-request deny unless {{ ssl_c_s_dn(CN) -m str client }}
  default_backend a{port}
backend a{port}
  server a 127.0.0.1:{port}{h2}
"""
    commands = {}
    for side, text in (("client", out), ("server", inside)):
        path = f"{folder}/haproxy-{between[:2]}-{side}.cfg"
        with open(path, "w") as file:
            file.write(text)
        commands[side] = [found("haproxy"), "-db", "-q", "-f", path]
    return commands


def envoy_program(root):
    return next(iter(glob.glob(f"{root}/target/bench/venv/lib/python3*/site-packages/envoy/_bin/envoy")), found("envoy"))


def envoy(root, folder, keys, jwks=None):
    """Envoy over HTTP/2. With `jwks` the server checks an ES256 token at every request, and a role in it."""
    kind = "type.googleapis.com/envoy.extensions."

    def tls(which, own, peer, alpn):
        context = {
            "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
            "alpn_protocols": alpn,
            "tls_certificates": [{"certificate_chain": {"filename": f"{keys}/{own}.pem"}, "private_key": {"filename": f"{keys}/{own}.key"}}],
            "validation_context": {"trusted_ca": {"filename": f"{keys}/ca.pem"}, "match_typed_subject_alt_names": [
                {"san_type": "URI", "matcher": {"exact": SAN % peer}}]},
        }
        typed = {"@type": kind + f"transport_sockets.tls.v3.{which}TlsContext", "common_tls_context": context}
        if which == "Downstream":
            typed["require_client_certificate"] = True
        return {"name": "tls", "typed_config": typed}

    def listener(port, cluster, filters, socket=None):
        router = {"name": "router", "typed_config": {"@type": kind + "filters.http.router.v3.Router"}}
        route = {"match": {"prefix": "/"}, "route": {"cluster": cluster, "timeout": "0s"}}
        manager = {
            "@type": kind + "filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": cluster, "codec_type": "AUTO", "http_filters": [*filters, router],
            "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
        }
        if socket:
            manager["forward_client_cert_details"] = "SANITIZE_SET"
            manager["set_current_client_cert_details"] = {"uri": True}
        chain = {"filters": [{"name": "http", "typed_config": manager}], **({"transport_socket": socket} if socket else {})}
        return {"name": f"l{port}", "address": {"socket_address": {"address": "0.0.0.0", "port_value": port}}, "filter_chains": [chain]}

    def cluster(name, address, port, h2, socket=None):
        many = {name: 100000 for name in ("max_connections", "max_pending_requests", "max_requests", "max_retries")}
        options = {"@type": kind + "upstreams.http.v3.HttpProtocolOptions",
                   "explicit_http_config": {"http2_protocol_options" if h2 else "http_protocol_options": {}}}
        return {
            "name": name, "type": "STATIC", "connect_timeout": "5s", "circuit_breakers": {"thresholds": [many]},
            "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [{"endpoint": {"address": {
                "socket_address": {"address": address, "port_value": port}}}}]}]},
            "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options},
            **({"transport_socket": socket} if socket else {}),
        }

    filters = []
    if jwks:
        provider = {"issuer": "http://127.0.0.1:18100", "audiences": ["bank"], "forward": True, "payload_in_metadata": "token",
                    "local_jwks": {"inline_string": jwks}}
        filters.append({"name": "envoy.filters.http.jwt_authn", "typed_config": {
            "@type": kind + "filters.http.jwt_authn.v3.JwtAuthentication", "providers": {"bench": provider},
            "rules": [{"match": {"prefix": "/"}, "requires": {"provider_name": "bench"}}]}})
        role = {"metadata_matcher": {"filter": "envoy.filters.http.jwt_authn", "path": [{"key": "token"}, {"key": "roles"}],
                                     "value": {"list_match": {"one_of": {"string_match": {"exact": "teller"}}}}}}
        caller = {"authenticated": {"principal_name": {"exact": SAN % "client"}}}
        rule = {"permissions": [{"any": True}], "principals": [{"and_ids": {"ids": [caller, {"sourced_metadata": role}]}}]}
        filters.append({"name": "envoy.filters.http.rbac", "typed_config": {
            "@type": kind + "filters.http.rbac.v3.RBAC", "rules": {"action": "ALLOW", "policies": {"teller": rule}}}})
    peer = lambda alpn: tls("Upstream", "client", "server", alpn)
    down = tls("Downstream", "server", "client", ["h2", "http/1.1"])
    sides = {
        "client": ([listener(OUT[port], f"s{port}", []) for port in OUT],
                   [cluster(f"s{port}", SERVER, TLS[port], True, peer(["h2"])) for port in OUT]),
        "server": ([listener(TLS[port], f"a{port}", filters, down) for port in OUT],
                   [cluster(f"a{port}", "127.0.0.1", port, port == 18081) for port in OUT]),
    }
    commands = {}
    for side, (listeners, clusters) in sides.items():
        path = f"{folder}/envoy{'-jwt' if jwks else ''}-{side}.json"
        with open(path, "w") as file:
            json.dump({"static_resources": {"listeners": listeners, "clusters": clusters}}, file)
        commands[side] = [envoy_program(root), "-c", path, "--concurrency", "1", "--disable-hot-restart", "-l", "error"]
    return commands


MESH = """apiVersion: rondel.dev/v1alpha1
kind: MeshConfig
metadata: { name: bench }
spec: { trustDomain: shop.example }
---
apiVersion: rondel.dev/v1alpha1
kind: Workload
metadata: { name: client, namespace: shop }
spec: { captured: true, admin: "127.0.0.1:15000", upstreams: [ { service: shop/server } ] }
---
apiVersion: rondel.dev/v1alpha1
kind: Workload
metadata: { name: server, namespace: shop }
spec: { captured: true, admin: "127.0.0.1:15000", inbound: [ { listen: "10.77.1.2:18080", protocol: http }, { listen: "10.77.1.2:18081", protocol: http } ] }
---
apiVersion: rondel.dev/v1alpha1
kind: AuthorizationPolicy
metadata: { name: server, namespace: shop }
spec:
  selector: { account: server }
  policies: |
"""

ISSUER = """---
apiVersion: rondel.dev/v1alpha1
kind: TokenIssuer
metadata: { name: bench }
spec: { issuer: "http://127.0.0.1:18100", jwksUri: "http://127.0.0.1:18100/jwks", audiences: [bank], algorithms: [ES256], claims: { roles: roles } }
"""


#: The policy of `rondel-full` that reads a header of the request.
BY_HEADER = 'context.request.headers has "x-channel" && context.request.headers["x-channel"] == "blocked"'
#: What every call of `rondel-full` carries beside its token, and what a policy forbids.
FULL_HEADERS = ["x-channel: web"]
FORBIDDEN_HEADERS = ["x-channel: blocked"]


def rondel_mesh(folder, full):
    """The configuration. `full`: twenty policies, of which one reads the token's roles and one a header, and a token for each call."""
    client = 'principal == Workload::"' + SAN % "client" + '"'
    policies = [f'@id("client") permit ({client}, action, resource);']
    if full:
        policies = [
            f'@id("teller") permit ({client}, action, resource) when {{ context has user && context.user in Role::"teller" }};',
            f'@id("header") forbid (principal, action, resource) when {{ {BY_HEADER} }};',
        ]
        for number in range(18):
            policies.append(f'@id("other-{number}") permit (principal == Workload::"{SAN % f"other-{number}"}", action, resource) '
                            f'when {{ context.request.path like "/other-{number}/*" }};')
    os.makedirs(folder, exist_ok=True)
    with open(f"{folder}/mesh.yaml", "w") as file:
        file.write(MESH + "".join(f"    {policy}\n" for policy in policies) + (ISSUER if full else ""))


#: Workloads and policies of each in `large_mesh`, the server among them.
LARGE = (100, 100)


def large_mesh(folder, edit):
    """Ten thousand policies more, a hundred of them the server's, one of which says `edit`. A new file moved over the old one, as editors do."""
    workloads, policies = LARGE
    documents = []
    for workload in range(workloads):
        account = "server" if workload == 0 else f"large-{workload}"
        if workload:
            documents.append(f'apiVersion: rondel.dev/v1alpha1\nkind: Workload\nmetadata: {{ name: {account}, namespace: shop }}\n'
                             f'spec: {{ admin: "127.0.0.1:{20000 + workload}" }}\n')
        lines = "".join(
            f'    @id("large-{workload}-{number}") permit (principal == Workload::"{SAN % f"caller-{number}"}", action, resource) '
            f'when {{ context has user && context.user in Role::"teller" && context.request.path like "/{workload}/{number}/{edit if workload == number == 0 else 0}/*" }};\n'
            for number in range(policies))
        documents.append(f"apiVersion: rondel.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{ name: large-{workload}, namespace: shop }}\n"
                         f"spec:\n  selector: {{ account: {account} }}\n  policies: |\n{lines}")
    with open(f"{folder}/.large.yaml.new", "w") as file:
        file.write("---\n".join(documents))
    os.replace(f"{folder}/.large.yaml.new", f"{folder}/large.yaml")
