//! What capture promises: nothing slips past, nothing goes round in circles, and what is not the mesh's is left as it is.

use crate::Shown;
use crate::pods::{OUTSIDE, Pods, SERVER, target};
use crate::protocols::{need, same, start_nginx};
use std::time::Duration;

fn proxy(pods: &Pods, pod: &str, arguments: &[&str]) -> Result<String, String> {
    pods.run(pod, &target().join("rondel-proxy").display().to_string(), arguments)
}

/// How long the sidecar may take to notice that its table is gone: it looks every 5 s.
const NOTICED: Duration = Duration::from_secs(15);

pub(crate) fn readiness(pods: &mut Pods) -> Result<Shown, String> {
    need!("curl");
    let rules = ["--proxy-gid", "2102"];
    let check = |pods: &Pods| proxy(pods, "client", &[&["capture", "check"], &rules[..]].concat());
    check(pods)?;
    for _ in 0..2 {
        proxy(pods, "client", &["capture", "remove"])?;
    }
    if check(pods).is_ok() {
        return Err("`capture check` does not see that the table is gone".into());
    }
    pods.wait_for("not ready without the table", NOTICED, |pods| proxy(pods, "client", &["wait", "--timeout", "0"]).is_err())?;
    let why = proxy(pods, "client", &["wait", "--timeout", "0"]).err().unwrap_or_default();
    if !why.contains("not redirected here") {
        return Err(format!("it does not say why: {why}"));
    }
    let metrics = pods.run("client", "curl", &["-sS", "-m", "5", "http://127.0.0.1:15000/metrics"])?;
    if !metrics.contains("\nrondel_capture_proven 0\n") {
        return Err("`rondel_capture_proven` is not 0".into());
    }
    for _ in 0..2 {
        proxy(pods, "client", &[&["capture", "apply"], &rules[..]].concat())?;
    }
    check(pods)?;
    proxy(pods, "client", &["wait", "--timeout", "15"])?;
    pods.run("client", "nft", &["insert", "rule", "inet", "rondel", "outbound", "tcp", "dport", "80", "return"])?;
    let changed = check(pods).err().unwrap_or_default();
    if !changed.contains("changed after they were loaded") {
        return Err(format!("`capture check` does not see a rule that was put in: {changed}"));
    }
    proxy(pods, "client", &[&["capture", "apply"], &rules[..]].concat())?;
    Ok(Shown::Yes("table removed: not ready and says why; applied twice: ready; a foreign rule is seen".into()))
}

pub(crate) fn strict(pods: &mut Pods) -> Result<Shown, String> {
    let paths = need!("nginx", "curl");
    start_nginx(pods, &paths[0])?;
    for url in [format!("http://{SERVER}/"), "http://[fd77::12]/".to_owned()] {
        let said = pods.run("outside", "curl", &["-sS", "-g", "-m", "5", "-o", "/dev/null", "-w", "%{http_code}", &url])?;
        same("from outside the mesh", &said, "400")?;
    }
    if !pods.access_log("server").contains("plaintext_refused") {
        return Err("it was not logged".into());
    }
    // A port that nobody declared is not reachable either.
    if pods.run("outside", "curl", &["-sS", "-m", "5", &format!("http://{SERVER}:7777/")]).is_ok() {
        return Err("an undeclared port answered".into());
    }
    pods.wait_for("the undeclared port is logged", Duration::from_secs(5), |pods| {
        pods.access_log("server").contains("port_unknown")
    })?;
    Ok(Shown::Yes("400 `plaintext_refused` over IPv4 and IPv6, `port_unknown` at an undeclared port".into()))
}

pub(crate) fn redirect_loop(pods: &mut Pods) -> Result<Shown, String> {
    need!("curl");
    for (pod, url) in [
        ("outside", format!("http://{SERVER}:15006/")),
        ("outside", format!("http://{SERVER}:15001/")),
        ("client", "http://127.0.0.1:15001/".into()),
    ] {
        if pods.run(pod, "curl", &["-sS", "-m", "5", &url]).is_ok() {
            return Err(format!("{url} answered"));
        }
    }
    for workload in ["server", "client"] {
        if !pods.access_log(workload).contains("redirect_loop") {
            return Err(format!("not logged at {workload}"));
        }
    }
    // Rules that exclude another user than the sidecar's lead it back to itself with everything that it connects to.
    proxy(pods, "client", &["capture", "apply", "--proxy-uid", "12345"])?;
    let ready = |pods: &Pods| proxy(pods, "client", &["wait", "--timeout", "0"]);
    pods.wait_for("not ready when its own connections come back", NOTICED, |pods| {
        ready(pods).err().is_some_and(|why| why.contains("redirected back to it"))
    })?;
    if pods.run("client", "curl", &["-sS", "-m", "5", &format!("http://{OUTSIDE}:8000/")]).is_ok() {
        return Err("a connection that goes round in circles was answered".into());
    }
    pods.wait_for("the circle is logged", Duration::from_secs(5), |pods| {
        pods.access_log("client").contains(&format!("this one would be too; it was going to {OUTSIDE}:8000"))
    })?;
    proxy(pods, "client", &["capture", "apply", "--proxy-gid", "2102"])?;
    proxy(pods, "client", &["wait", "--timeout", "15"])?;
    let said = "connections to the sidecar's own ports end with `redirect_loop`, and so do its own if the rules lead them back";
    Ok(Shown::Yes(said.into()))
}

pub(crate) fn permissive(pods: &mut Pods) -> Result<Shown, String> {
    let paths = need!("python3", "curl");
    let server = "import http.server as h,sys\nclass A(h.BaseHTTPRequestHandler):\n  def do_GET(s):\n    b=(str(s.headers['x-rondel-principal'])+' '+str(s.headers['x-forwarded-client-cert'])+'\\n').encode()\n    s.send_response(200); s.send_header('content-length',str(len(b))); s.end_headers(); s.wfile.write(b)\nh.ThreadingHTTPServer(('0.0.0.0',9000),A).serve_forever()";
    pods.serve(&paths[0], &["-c", server], 9000)?;
    let at = |path: &str| format!("http://{SERVER}:9000{path}");
    let curl = |pod: &str, arguments: &[&str]| pods.run(pod, "curl", &[&["-sS", "-m", "10"], arguments].concat());
    let claim = "x-rondel-principal: spiffe://shop.example/ns/shop/sa/client";
    same("plaintext", &curl("outside", &["-H", claim, &at("/")])?, "None None")?;
    same("denied to plaintext", &curl("outside", &["-o", "/dev/null", "-w", "%{http_code}", &at("/big")])?, "403")?;
    same("denied method", &curl("outside", &["-X", "POST", "-o", "/dev/null", "-w", "%{http_code}", &at("/")])?, "403")?;
    let certified = curl("client", &[&at("/big")])?;
    if !certified.starts_with("spiffe://shop.example/ns/shop/sa/client By=spiffe://") {
        return Err(format!("with mutual TLS: {certified}"));
    }
    let metrics = pods.run("server", "curl", &["-sS", "-m", "5", "http://127.0.0.1:15000/metrics"])?;
    let counted = format!("rondel_plaintext_connections_total{{source=\"{OUTSIDE}\"}} 3");
    if !metrics.contains(&counted) {
        return Err(format!("not counted as `{counted}`"));
    }
    Ok(Shown::Yes(
        "3 plaintext clients counted by address, decided as `unauthenticated`, claims removed; mutual TLS goes on".into(),
    ))
}

pub(crate) fn egress(pods: &mut Pods) -> Result<Shown, String> {
    let paths = need!("python3", "curl");
    let page = "import http.server as h\nclass A(h.BaseHTTPRequestHandler):\n  def do_GET(s):\n    b=b'outside\\n'; s.send_response(200); s.send_header('content-length',str(len(b))); s.end_headers(); s.wfile.write(b)\nh.ThreadingHTTPServer(('10.77.0.1',8000),A).serve_forever()";
    let mut server = pods.command("outside", &paths[0]);
    let quiet = std::process::Stdio::null;
    let mut server = server.args(["-c", page]).stdout(quiet()).stderr(quiet()).spawn().map_err(|error| error.to_string())?;
    let said = pods.run(
        "client",
        "curl",
        &[
            "-sS",
            "-m",
            "10",
            "--retry",
            "20",
            "--retry-connrefused",
            "--retry-delay",
            "1",
            "--retry-all-errors",
            &format!("http://{OUTSIDE}:8000/"),
        ],
    );
    let told = |pods: &Pods| pods.access_log("client").matches(&format!("\"upstream\":\"{OUTSIDE}:8000\"")).count();
    let logged = told(pods);
    // What the rules leave alone does not come by the sidecar.
    let left_alone = [
        ["--exclude-outbound-cidrs", "10.77.0.1/32"],
        ["--exclude-outbound-ports", "8000"],
        ["--include-outbound-cidrs", "10.77.1.0/24"],
    ]
    .map(|rule| {
        proxy(pods, "client", &[&["capture", "apply", "--proxy-gid", "2102"], &rule[..]].concat())?;
        pods.run("client", "curl", &["-sS", "-m", "10", &format!("http://{OUTSIDE}:8000/")])
    });
    proxy(pods, "client", &["capture", "apply", "--proxy-gid", "2102"])?;
    crate::pods::end(&mut server);
    same("a server outside the mesh", &said?, "outside")?;
    for said in left_alone {
        same("left alone", &said?, "outside")?;
    }
    if logged == 0 || told(pods) != logged {
        return Err(format!("logged {logged} times, and {} times after it was left alone", told(pods)));
    }
    Ok(Shown::Yes(
        "as they are, and logged with their address; excluded by range or port, they do not come by the sidecar".into(),
    ))
}

pub(crate) fn egress_refused(pods: &mut Pods) -> Result<Shown, String> {
    need!("curl");
    let file = pods.dir.path().join("mesh/mesh.yaml");
    let open = std::fs::read_to_string(&file).map_err(|error| error.to_string())?;
    let write = |text: &str| std::fs::write(&file, text).map_err(|error| error.to_string());
    write(&open.replacen("  trustDomain: shop.example", "  trustDomain: shop.example\n  egress: refuse", 1))?;
    let call = |pods: &Pods| pods.run("client", "curl", &["-sS", "-m", "5", &format!("http://{OUTSIDE}:8000/")]);
    pods.wait_for("the outside is refused", Duration::from_secs(10), |pods| {
        call(pods).is_err() && pods.access_log("client").contains("egress_refused")
    })?;
    write(&open)?;
    Ok(Shown::Yes("`egress: refuse` ends them with `egress_refused`".into()))
}

pub(crate) fn cut_off(pods: &mut Pods) -> Result<Shown, String> {
    const PORT: &str = "41777";
    let paths = need!("nginx", "curl", "python3");
    start_nginx(pods, &paths[0])?;
    let url = format!("http://{SERVER}/");
    let code = |pods: &Pods| pods.run("client", "curl", &["-sS", "-m", "15", "-o", "/dev/null", "-w", "%{http_code}", &url]);
    same("before", &code(pods)?, "200")?;
    let before = pods.resident_kib("client")?;
    // The second workload's side of the bridge.
    pods.run("outside", "ip", &["link", "set", "rondel-1", "down"])?;
    let began = std::time::Instant::now();
    let post = ["-sS", "-m", "25", "-o", "/dev/null", "-w", "%{http_code}", "-X", "POST", "-d", "x", &url];
    let cut = pods.run("client", "curl", &post);
    let failed_after = began.elapsed();
    // Callers that try on and on meanwhile: what waits for a pod that is gone is let go.
    let flood = format!("http://{SERVER}/?[1-400]");
    let flood = ["-sS", "-Z", "--parallel-max", "100", "-m", "5", "-o", "/dev/null", &flood];
    let _none_answered = pods.run("client", "curl", &flood);
    let grown = pods.resident_kib("client")?.saturating_sub(before);
    // By then every kept connection has been given up, so that only new ones are tried.
    std::thread::sleep(Duration::from_secs(14).saturating_sub(began.elapsed()));
    let later = pods.run("client", "curl", &post);
    // The sidecar has tried from this port a moment ago: the kernel remembers that attempt, and the application may be given the port.
    let attempt = format!(
        "import os,socket\nos.setgid(2102)\ns=socket.socket()\ns.settimeout(1)\ns.bind(('',{PORT}))\n\
         try: s.connect(('{SERVER}',80))\nexcept OSError: pass"
    );
    let same_port = pods
        .run("client", "python3", &["-c", &attempt])
        .and_then(|_| pods.run("client", "curl", &[&["--local-port", PORT], &post[..]].concat()));
    pods.run("outside", "ip", &["link", "set", "rondel-1", "up"])?;
    let log = pods.access_log("client");
    // On a kept connection nobody answers; a new one cannot be made.
    let cut = cut?;
    let reason = match cut.trim() {
        "504" => "upstream_timeout",
        "502" => "upstream_connect",
        other => return Err(format!("cut off: `{other}`")),
    };
    same("cut off for longer", &later?, "502")?;
    same("from a port that the sidecar has tried from", &same_port?, "502")?;
    if !log.contains(reason) || !log.contains("upstream_connect") {
        return Err(format!("the true reasons were not logged: {reason}, upstream_connect"));
    }
    let began = std::time::Instant::now();
    pods.wait_for("it is back", Duration::from_secs(30), |pods| code(pods).is_ok_and(|code| code == "200"))?;
    let back = began.elapsed();
    if grown > 16 * 1024 {
        return Err(format!("{grown} KiB more for 400 calls that nobody could answer"));
    }
    let told =
        format!("`{reason}` after {failed_after:.1?}, back {back:.1?} after the link; 400 calls meanwhile: {grown} KiB more");
    Ok(Shown::Yes(told))
}

pub(crate) fn drain(pods: &mut Pods) -> Result<Shown, String> {
    let paths = need!("nginx", "curl", "python3");
    start_nginx(pods, &paths[0])?;
    // The application calls on after its sidecar was told to end: every call must succeed until the grace is over.
    let script = format!(
        "import http.client,time,os,signal\nc=http.client.HTTPConnection('{SERVER}',80,timeout=5)\ndef call():\n  c.request('GET','/'); r=c.getresponse(); assert r.read()==b'hello\\n', r.status\ncall()\nos.kill(int(open('pid').read()),signal.SIGTERM)\nend=time.monotonic()+2\nn=0\nwhile time.monotonic()<end:\n  call(); n+=1; time.sleep(0.02)\nprint(n)"
    );
    std::fs::write(pods.dir.path().join("pid"), pods.sidecar_pid("client")?).map_err(|error| error.to_string())?;
    let calls = pods.run("client", "python3", &["-c", &script])?;
    Ok(Shown::Yes(format!("{} calls after SIGTERM, none failed", calls.trim())))
}
