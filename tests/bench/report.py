"""What was measured, for people: a table, a picture, a summary as JSON, and the page of the documentation."""

import datetime
import json
import os
import platform
import re
import statistics
import subprocess

import peers
import picture
from peers import found

#: Title, lane, figure, digits, the better direction, and whether the best round counts instead of the median.
MEASURES = [
    ("64 connections: CPU of both a request, µs", "closed", "us", 1, "less", False),
    ("64 connections: requests a second", "closed", "rps", 0, "more", False),
    ("one in series: p50, µs", "series", "p50", 0, "less", False),
    ("1000 a second: p50 from the due time, µs", "steady", "p50", 0, "less", False),
    ("1000 a second: p99 from the due time, best round, µs", "steady", "p99", 0, "less", True),
    ("the same beside bad tokens, 10,000 a second if it takes them: p50, µs", "flood", "p50", 0, "less", False),
    ("the same beside bad tokens, 10,000 a second if it takes them: p99, best round, µs", "flood", "p99", 0, "less", True),
    ("the same while one of 10,000 policies is edited again and again: p99, best round, µs", "change", "p99", 0, "less", True),
    ("a new connection each: CPU of both, µs", "fresh", "us", 1, "less", False),
    ("1 MiB bodies: MB a second", "big", "mb_s", 0, "more", False),
    ("gRPC-like over HTTP/2: CPU of both a call, µs", "grpc", "us", 1, "less", False),
    ("handshake, X25519: CPU of the server, µs", "handshake", "us_server", 0, "less", False),
    ("handshake, X25519MLKEM768: CPU of the server, µs", "handshake-hybrid", "us_server", 0, "less", False),
    ("idle: RSS of one, MiB", "memory", "idle_mib", 1, "less", False),
    ("idle: KiB a connection at the client's", "idle", "kib", 1, "less", False),
]
BASES = ("rondel-full", "rondel")
BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"


def machine():
    """What is measured on, without its name."""
    model = ""
    with open("/proc/cpuinfo") as lines:
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    try:
        with open("/etc/os-release") as lines:
            system = next((line.split("=", 1)[1].strip().strip('"') for line in lines if line.startswith("PRETTY_NAME=")), platform.system())
    except FileNotFoundError:
        system = platform.system()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {"cpu": model, "cores": len(os.sched_getaffinity(0)), "memory_gib": round(memory), "kernel": re.match(r"[\d.]+", platform.release())[0], "system": system,
            "date": datetime.date.today().isoformat()}


def versions(root, pairs):
    """The version of everything that was measured, and of what measured it."""
    def ask(pattern, program, *words):
        try:
            output = subprocess.run([program, *words], capture_output=True, text=True, timeout=20)
        except (OSError, TypeError, subprocess.SubprocessError):
            return "unknown"
        match = re.search(pattern, output.stdout + output.stderr)
        return match[1] if match else "unknown"

    asked = {
        "rondel": (r"(\d+\.\d+\.\d+)", f"{root}/target/release/rondel-proxy", "--version"),
        "envoy": (r"/(\d+\.\d+\.\d+)/", peers.envoy_program(root), "--version"),
        "haproxy": (r"version (\d+\.\d+\.\d+)", found("haproxy"), "-v"),
        "nginx": (r"nginx/(\d+\.\d+\.\d+)", found("nginx"), "-v"),
    }
    kinds = {pair.split("-")[0] for pair in pairs}
    told = {name: ask(*words) for name, words in asked.items() if name in kinds}
    if "rondel" in told:
        revision = ask(r"([0-9a-f]{7,}(?:-dirty)?)", "git", "-C", root, "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")
        told["rondel"] += "" if revision == "unknown" else f" at {revision}"
    told |= {"OpenSSL": ask(r"OpenSSL (\S+)", found("openssl"), "version"), "wrk": ask(r"wrk \S*?(\d+\.\d+\.\d+)", found("wrk"), "-v"),
             "h2load": ask(r"nghttp2/(\S+)", found("h2load"), "--version"), "rustc": ask(r"rustc (\S+)", "rustc", "--version")}
    return told


def summarize(about, results):
    """One value for each pair and measure, with its extremes and its ratio to Rondel's with everything on."""
    kept = {}
    for result in results:
        # Of several attempts in a round, the one of which least was stolen.
        key = (result["pair"], result["lane"], result["round"])
        if key not in kept or result.get("stolen", 0) < kept[key].get("stolen", 0):
            kept[key] = result
    pairs = [pair for pair in about["pairs"] if any(whose == pair for whose, _, _ in kept)]
    base = next((name for name in BASES if name in pairs), None)
    table = []
    for title, lane, name, digits, better, is_best in MEASURES:
        row = {}
        for pair in pairs:
            values = [each[name] for (whose, which, _), each in kept.items() if (whose, which) == (pair, lane) and each.get(name) is not None]
            if values and not (pair == "direct" and name.startswith("us")):
                row[pair] = {"value": min(values) if is_best else statistics.median(values), "least": min(values), "most": max(values)}
        ours = row.get(base, {}).get("value")
        for each in row.values():
            each["ratio"] = round(each["value"] / ours, 3) if ours else None
        if row:
            table.append({"measure": title, "lane": lane, "better": better, "digits": digits, "pairs": row})
    errors = {pair: sum(each.get("errors", 0) for (whose, _, _), each in kept.items() if whose == pair) for pair in pairs}
    stolen = max((each.get("stolen", 0) for each in kept.values()), default=0)
    return {**about, "pairs": pairs, "base": base, "table": table, "errors": errors, "stolen_most": round(stolen, 3)}


def markdown(summary):
    """A row for each measure, a column for each pair; the best of the sidecars in bold."""
    pairs, base = summary["pairs"], summary["base"]
    lines = ["| | " + " | ".join(pairs) + " |", "| --- |" + " ---: |" * len(pairs)]
    for row in summary["table"]:
        sidecars = [each["value"] for pair, each in row["pairs"].items() if pair != "direct"]
        best = (min if row["better"] == "less" else max)(sidecars, default=None)
        cells = []
        for pair in pairs:
            each = row["pairs"].get(pair)
            if not each:
                cells.append("–")
                continue
            value = f"{each['value']:.{row['digits']}f}"
            value = f"**{value}**" if each["value"] == best and pair != "direct" else value
            cells.append(value + (f" ({each['ratio']:.2f})" if each["ratio"] is not None and pair != base else ""))
        arrow = "↓" if row["better"] == "less" else "↑"
        lines.append(f"| {row['measure']} {arrow} | " + " | ".join(cells) + " |")
    lines.append("| errors | " + " | ".join(str(summary["errors"][pair]) for pair in pairs) + " |")
    text = "\n".join(lines) + "\n\n↓: less is better, ↑: more is better; the best sidecar in bold.\n"
    return text + (f"In brackets: the ratio to `{base}` in the same run.\n" if base else "")


#: The load average above which the machine is not ours alone; stolen time does not show what else runs on it.
BUSY = 0.5


def origin(summary):
    """Where the figures come from."""
    on, versions = summary["machine"], summary["versions"]
    rounds = "1 round" if summary["rounds"] == 1 else f"{summary['rounds']} interleaved rounds"
    quick = " of one second each: they show that it works and measure little" if summary["quick"] else ""
    busy = " (something else ran here: noise)" if summary["load_before"] > BUSY else ""
    return (f"Measured on {on['date']}: {rounds}{quick}.\n"
            f"Machine: {on['cpu']}, {on['cores']} cores, {on['memory_gib']} GiB, {on['system']}, kernel {on['kernel']}; "
            f"at most {summary['stolen_most']:.3f} of a core stolen in what counts, load average before it {summary['load_before']}{busy}.\n"
            "Versions: " + ", ".join(f"{name} {version}" for name, version in versions.items()) + ".\n")


def write(about, results, out, docs=None):
    """Writes everything; returns the table with its origin."""
    summary = summarize(about, results)
    text = markdown(summary) + "\n" + origin(summary)
    svg = picture.draw(summary)
    for name, content in (("table.md", text), ("results.json", json.dumps(summary, indent=1, ensure_ascii=False) + "\n"), ("table.svg", svg)):
        with open(f"{out}/{name}", "w") as file:
            file.write(content)
    if docs:
        for name, content in (("performance.svg", svg), ("performance.json", json.dumps(summary, indent=1, ensure_ascii=False) + "\n")):
            with open(f"{docs}/{name}", "w") as file:
                file.write(content)
        with open(f"{docs}/performance.md") as file:
            before, _, rest = file.read().partition(BEGIN)
            _, found_end, after = rest.partition(END)
        if not found_end:
            raise SystemExit(f"docs/performance.md: the markers {BEGIN} and {END} are missing")
        alternative = "Bars for each measure of the table below"
        section = f"\n![{alternative}](performance.svg)\n\n{text}"
        with open(f"{docs}/performance.md", "w") as file:
            file.write(f"{before}{BEGIN}{section}{END}{after}")
    return text
