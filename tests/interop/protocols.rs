//! What services say to each other, carried faithfully.

use crate::Shown;
use crate::pods::{CLIENT_ID, Pods, SERVER, SERVER_V6, apps, target, which};
use std::path::PathBuf;

/// Fails with both sides of what should be equal.
pub(crate) fn same(what: &str, got: &str, wanted: &str) -> Result<(), String> {
    if got.trim() == wanted.trim() { Ok(()) } else { Err(format!("{what}: `{}`, not `{}`", got.trim(), wanted.trim())) }
}

pub(crate) fn found(programs: &[&str]) -> Result<Vec<PathBuf>, String> {
    let path = |program: &&str| which(program).ok_or_else(|| format!("`{program}` is not installed"));
    programs.iter().map(path).collect()
}

macro_rules! need {
    ($($program:literal),+) => {
        match crate::protocols::found(&[$($program),+]) {
            Ok(paths) => paths,
            Err(missing) => return Ok(crate::Shown::Skipped(missing)),
        }
    };
}
pub(crate) use need;

/// nginx in the server's pod, once.
pub(crate) fn start_nginx(pods: &mut Pods, nginx: &std::path::Path) -> Result<(), String> {
    let dir = pods.dir.path().join("nginx");
    if dir.exists() {
        return Ok(());
    }
    std::fs::create_dir_all(dir.join("html")).expect("folder");
    let readable = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    std::fs::set_permissions(dir.join("html"), readable).expect("permissions");
    std::fs::write(dir.join("html/index.html"), "hello\n").expect("page");
    let big: Vec<u8> = (0..8_000_000_u32).flat_map(|number| number.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    std::fs::write(dir.join("html/big"), &big).expect("page");
    let text = std::fs::read_to_string(apps().join("nginx.conf")).expect("configuration");
    std::fs::write(dir.join("nginx.conf"), text.replace("DIR", &dir.display().to_string())).expect("configuration");
    pods.serve(nginx, &["-c", &dir.join("nginx.conf").display().to_string()], 80)
}

pub(crate) fn nginx(pods: &mut Pods) -> Result<Shown, String> {
    let paths = need!("nginx", "curl");
    start_nginx(pods, &paths[0])?;
    let curl = |arguments: &[&str]| pods.run("client", "curl", &[&["-sS", "-m", "20"], arguments].concat());
    let at = |path: &str| format!("http://{SERVER}{path}");
    same("GET", &curl(&[&at("/")])?, "hello")?;
    same("IPv6", &curl(&["-g", &format!("http://[{SERVER_V6}]/")])?, "hello")?;
    same("HTTP/1.0", &curl(&["-0", "-w", "%{http_version}", &at("/")])?, "hello\n1")?;
    same("HEAD", &curl(&["-I", "-o", "/dev/null", "-w", "%{http_code} %{size_download}", &at("/")])?, "200 0")?;
    same("404", &curl(&["-o", "/dev/null", "-w", "%{http_code}", &at("/nothing")])?, "404")?;
    same("range", &curl(&["-r", "1-3", "-w", "%{http_code}", &at("/")])?, "ell206")?;
    same("gzip", &curl(&["--compressed", &at("/who")])?, &format!("{CLIENT_ID} 10.77.255.1"))?;
    let claims = ["-H", "x-rondel-principal: spiffe://evil", "-H", "x-forwarded-for: 1.1.1.1", &at("/who")];
    same("claims", &curl(&claims)?, &format!("{CLIENT_ID} 10.77.255.1"))?;
    // curl asks for `100 Continue` before so large a body.
    let put = ["-H", "Expect: 100-continue", "-T", "nginx/html/big", "-o", "/dev/null", "-w", "%{http_code}", &at("/copy")];
    same("PUT of 32 MB", &curl(&put)?, "201")?;
    curl(&["-o", "back", &at("/copy")])?;
    pods.run("client", "cmp", &["back", "nginx/html/big"])?;
    let many = format!("http://{SERVER}/?[1-200]");
    same("keep-alive", &curl(&["-o", "/dev/null", "-w", "%{num_connects}", &many])?.replace('0', ""), "1")?;
    Ok(Shown::Yes("HTTP/1.0 and 1.1, IPv6, HEAD, range, gzip, 100-continue, 32 MB both ways byte for byte, keep-alive".into()))
}

pub(crate) fn h2load_http1(pods: &mut Pods) -> Result<Shown, String> {
    let paths = need!("nginx", "h2load");
    start_nginx(pods, &paths[0])?;
    load(pods, &["--h1", "-n", "4000", "-c", "20", &format!("http://{SERVER}/")])
}

pub(crate) fn h2load_http2(pods: &mut Pods) -> Result<Shown, String> {
    let paths = need!("nghttpd", "h2load");
    let folder = pods.dir.path().join("nghttpd");
    std::fs::create_dir(&folder).expect("folder");
    std::fs::write(folder.join("page"), "hello\n").expect("page");
    pods.serve(&paths[0], &["--no-tls", "-d", &folder.display().to_string(), "81"], 81)?;
    load(pods, &["-n", "4000", "-c", "4", "-m", "20", &format!("http://{SERVER}:81/page")])
}

/// The conformance suite, against the sidecar's listener and, beside it, against nghttpd itself.
pub(crate) fn h2spec(pods: &mut Pods) -> Result<Shown, String> {
    need!("nghttpd", "h2load");
    let program = target().join("../interop/h2spec");
    if !program.exists() {
        return Ok(Shown::Skipped("`h2spec` is not there: run tests/interop/prepare.sh".into()));
    }
    let program = program.display().to_string();
    let cases = |pod: &str, host: &str| {
        let report = pods.dir.path().join(format!("h2spec-{pod}.xml"));
        let arguments = ["-h", host, "-p", "81", "--path", "/page", "-o", "2", "-j", &report.display().to_string()];
        let told = pods.command(pod, &program).args(arguments).output().map_err(|error| format!("h2spec: {error}"))?;
        let xml = std::fs::read_to_string(&report).map_err(|error| format!("no report: {error}: {told:?}"))?;
        Ok::<_, String>(failures(&xml))
    };
    let (ours, theirs) = (cases("outside", SERVER)?, cases("server", "127.0.0.1")?);
    // This plaintext port serves both versions, so that what is no preface is an HTTP/1 head, and is answered as one.
    let expected = |case: &str| case == "http2/3.5 Sends invalid connection preface";
    let worse: Vec<&String> = ours.1.iter().filter(|case| !theirs.1.contains(case) && !expected(case)).collect();
    if ours.0 < 100 || !worse.is_empty() {
        return Err(format!("of {} cases these fail here alone: {worse:#?}; nghttpd fails {:?}", ours.0, theirs.1));
    }
    let told = |cases: &[String]| if cases.is_empty() { "none".to_owned() } else { cases.join(", ") };
    Ok(Shown::Yes(format!("{} cases; fail: {}; nghttpd beside it: {}", ours.0, told(&ours.1), told(&theirs.1))))
}

/// How many cases a JUnit report has, and the names of those that failed.
fn failures(xml: &str) -> (usize, Vec<String>) {
    let mut failed = Vec::new();
    let mut count = 0;
    for case in xml.split("<testcase ").skip(1) {
        count += 1;
        let attribute = |name: &str| {
            case.split_once(&format!("{name}=\"")).and_then(|(_, rest)| rest.split_once('"')).map_or("", |(value, _)| value)
        };
        if case.contains("<failure>") || case.contains("<error>") || case.contains("<failure ") {
            failed.push(format!("{} {}", attribute("package"), attribute("classname")));
        }
    }
    (count, failed)
}

fn load(pods: &Pods, arguments: &[&str]) -> Result<Shown, String> {
    let said = pods.run("client", "h2load", arguments)?;
    let line = |begin: &str| said.lines().find(|line| line.starts_with(begin)).unwrap_or_default().to_owned();
    let (requests, codes) = (line("requests:"), line("status codes:"));
    let all = requests.contains("4000 succeeded, 0 failed, 0 errored") && codes.starts_with("status codes: 4000 2xx");
    if all {
        return Ok(Shown::Yes("4000 of 4000".into()));
    }
    let refused = |log: String| {
        log.lines().find(|line| line.contains("\"status\":4") && line.contains("/page")).unwrap_or("no refusal").to_owned()
    };
    let (client, server) = (refused(pods.access_log("client")), refused(pods.access_log("server")));
    Err(format!("{requests}; {codes}\nclient's sidecar: {client}\nserver's sidecar: {server}"))
}

pub(crate) fn redis(pods: &mut Pods) -> Result<Shown, String> {
    let paths = need!("redis-server", "redis-cli", "redis-benchmark");
    pods.serve(&paths[0], &["--bind", "0.0.0.0", "--protected-mode", "no", "--port", "6379", "--save", ""], 6379)?;
    let cli = |arguments: &[&str]| pods.run("client", "redis-cli", &[&["-h", SERVER], arguments].concat());
    same("PING", &cli(&["ping"])?, "PONG")?;
    let value = "v".repeat(100_000);
    same("SET", &cli(&["set", "key", &value])?, "OK")?;
    same("GET", &cli(&["get", "key"])?, &value)?;
    let mut listener = pods.command("client", "redis-cli");
    let listener = listener.args(["-h", SERVER, "--csv", "subscribe", "news"]).stdout(std::process::Stdio::piped());
    let listener = listener.spawn().map_err(|error| error.to_string())?;
    let mut heard = Err("nobody subscribed".to_owned());
    for _ in 0..50 {
        if cli(&["publish", "news", "told"])?.trim() == "1" {
            heard = Ok(());
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    let listening = i32::try_from(listener.id()).ok().and_then(rustix::process::Pid::from_raw);
    std::thread::sleep(std::time::Duration::from_millis(300));
    let _gone = listening.map(|pid| rustix::process::kill_process(pid, rustix::process::Signal::TERM));
    let said = listener.wait_with_output().map_err(|error| error.to_string())?;
    heard?;
    if !String::from_utf8_lossy(&said.stdout).contains("told") {
        return Err("the subscriber was not told".into());
    }
    pods.run("client", "redis-benchmark", &["-h", SERVER, "-n", "2000", "-c", "10", "-q", "-t", "set,get,mset"])?;
    let log = pods.access_log("server");
    let is_connection = |line: &&str| line.contains(r#""upstream":"10.77.1.2:6379""#) && line.contains(r#""kind":"tunnel""#);
    if log.lines().find(is_connection).is_none() {
        return Err("it was not decided as a connection".into());
    }
    Ok(Shown::Yes("detected and decided as a connection: set and get, 100 kB value, publish, 6000 of redis-benchmark".into()))
}

pub(crate) fn postgresql(pods: &mut Pods) -> Result<Shown, String> {
    let paths = need!("postgres", "initdb", "psql", "setpriv");
    let data = pods.dir.path().join("postgres");
    std::fs::create_dir(&data).expect("folder");
    let nobody = ["--reuid=65534", "--regid=65534", "--clear-groups"];
    std::os::unix::fs::chown(&data, Some(65_534), Some(65_534)).map_err(|error| error.to_string())?;
    let (data, initdb) = (data.display().to_string(), paths[1].display().to_string());
    let make = [&nobody[..], &[&initdb, "-D", &data, "-A", "trust", "-U", "rondel", "--no-sync"]].concat();
    pods.run("server", "setpriv", &make)?;
    let hba = format!("{data}/pg_hba.conf");
    std::fs::write(hba, "host all all 0.0.0.0/0 trust\n").map_err(|error| error.to_string())?;
    let postgres = paths[0].display().to_string();
    let serve = [&nobody[..], &[&postgres, "-D", &data, "-h", "0.0.0.0", "-k", "", "-F"]].concat();
    pods.serve(&paths[3], &serve, 5432)?;
    pods.wait_for("PostgreSQL answers", std::time::Duration::from_secs(20), |pods| {
        pods.run("client", "psql", &["-h", SERVER, "-U", "rondel", "-d", "postgres", "-c", "select 1"]).is_ok()
    })?;
    let sql = |text: &str| {
        let common = ["-h", SERVER, "-U", "rondel", "-d", "postgres", "-v", "ON_ERROR_STOP=1", "-At", "-c", text];
        pods.run("client", "psql", &common)
    };
    same("select", &sql("select 6 * 7")?, "42")?;
    sql("create table rows as select generate_series(1, 200000) as n, repeat('x', 40) as text")?;
    let copied = sql("copy rows to stdout")?;
    same("COPY out", &copied.lines().count().to_string(), "200000")?;
    same(
        "notify",
        sql("listen news; notify news, 'told'; select 1")?.lines().last().unwrap_or_default(),
        "Asynchronous notification \"news\" with payload \"told\" received from server process with PID",
    )
    .or_else(|differs| if differs.contains("told") { Ok(()) } else { Err(differs) })?;
    Ok(Shown::Yes(format!("declared tcp: select, COPY of {} MB, LISTEN and NOTIFY", copied.len() / 1_000_000)))
}

pub(crate) fn server_first(pods: &mut Pods) -> Result<Shown, String> {
    let paths = need!("python3");
    pods.serve(&paths[0], &[&apps().join("banner_server.py").display().to_string(), "2525"], 2525)?;
    let client = apps().join("banner_client.py").display().to_string();
    pods.run("client", "python3", &[&client, SERVER, "2525"]).map(|said| Shown::Yes(said.trim().to_owned()))
}

pub(crate) fn websocket(pods: &mut Pods) -> Result<Shown, String> {
    let paths = need!("node");
    let library = target().join("../interop/node_modules");
    if !library.join("ws").exists() {
        return Ok(Shown::Skipped("the package `ws` is not there: run tests/interop/prepare.sh".into()));
    }
    pods.serve(&paths[0], &[&apps().join("websocket_server.js").display().to_string(), "8080"], 8080)?;
    let mut client = pods.command("client", &paths[0]);
    client.arg(apps().join("websocket_client.js")).arg(format!("ws://{SERVER}:8080/chat")).arg(CLIENT_ID);
    let output = client.env("NODE_PATH", library).output().map_err(|error| error.to_string())?;
    let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if output.status.success() { Ok(Shown::Yes(said)) } else { Err(format!("{said}{}", String::from_utf8_lossy(&output.stderr))) }
}

pub(crate) fn grpc(pods: &mut Pods) -> Result<Shown, String> {
    let python = target().join("../interop/venv/bin/python");
    let is_there = std::process::Command::new(&python).args(["-c", "import grpc"]).status();
    if !is_there.is_ok_and(|status| status.success()) {
        return Ok(Shown::Skipped("the package `grpcio` is not there: run tests/interop/prepare.sh".into()));
    }
    pods.serve(&python, &[&apps().join("grpc_server.py").display().to_string(), "50051"], 50051)?;
    let client = apps().join("grpc_client.py").display().to_string();
    let python = python.display().to_string();
    let said = pods.run("client", &python, &[&client, &format!("{SERVER}:50051"), CLIENT_ID])?;
    // The kubelet's health checks, from outside the mesh: of the server as a whole, of a service that is not well, of none.
    for (service, expected) in [("", "200"), ("/sick", "503"), ("/absent", "503")] {
        let url = format!("http://{SERVER}:15021/probe/50051/grpc{service}");
        let status = pods.run("outside", "curl", &["-sS", "-m", "5", "-o", "/dev/null", "-w", "%{http_code}", &url])?;
        if status != expected {
            return Err(format!("the health of `{service}`: {status}, expected {expected}"));
        }
    }
    Ok(Shown::Yes(format!("{}; health probes answered", said.trim())))
}
