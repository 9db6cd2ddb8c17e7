//! The executable as a person meets it: help, errors that say what to do, status, push.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use coracle_tests::{Background, Cluster, coracle, guest, output, root};

fn fails(arguments: &[&str]) -> String {
    let output = Command::new(coracle()).args(arguments).env_remove("KUBECONFIG").output().expect("run coracle");
    assert!(!output.status.success(), "{arguments:?} should fail");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn help_names_every_command() {
    let output = Command::new(coracle()).arg("--help").output().expect("run coracle");
    let help = String::from_utf8_lossy(&output.stdout).into_owned();
    let commands =
        help.split("Commands:\n").nth(1).and_then(|rest| rest.split("\n\n").next()).expect("a list of commands");
    let names: Vec<&str> = commands
        .lines()
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    let expected = [
        "up",
        "down",
        "demo",
        "server",
        "node",
        "controllers",
        "member",
        "token",
        "encryption",
        "push",
        "status",
        "kubeconfig",
        "logs",
        "tap",
        "routes",
        "reset",
        "backup",
        "restore",
        "recover",
        "upgrade",
        "bench",
        "completion",
        "version",
        "help",
    ];
    assert_eq!(names, expected, "{help}");
}

/// Commands that speak with a cluster, where none is, and what they end with.
#[test]
fn the_exit_code_says_whether_no_cluster_answers() {
    let temp = tempfile::tempdir().expect("a directory");
    // A port that is free refuses at once.
    let free = std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port");
    let server = format!("https://{free}");
    let token = format!("c1.0a1b2c3d.{}.{}", "5e".repeat(16), "0a".repeat(32));
    let kubeconfig = temp.path().join("kubeconfig");
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters: [{{name: c, cluster: {{server: '{server}'}}}}]\n\
         contexts: [{{name: c, context: {{cluster: c, user: u}}}}]\nusers: [{{name: u, user: {{token: t}}}}]\n"
    );
    std::fs::write(&kubeconfig, text).expect("write a file");
    let [kubeconfig, data, backup] =
        [kubeconfig, temp.path().join("data"), temp.path().join("backup")].map(|path| path.display().to_string());
    let wasm = guest("hello").display().to_string();
    let join = ["--join", &server, "--token", &token, "--data-dir", &data];
    let bad = ["--join", &server, "--token", "rubbish", "--data-dir", &data];
    let ports = ["--api-port", "0", "--registry-port", "0", "--peer-port", "0"];
    let which = ["--kubeconfig", kubeconfig.as_str()];
    let all = |parts: &[&[&str]]| parts.concat().iter().map(ToString::to_string).collect::<Vec<String>>();
    for (arguments, code) in [
        (all(&[&["node", "--port", "0"], &join]), 3),
        (all(&[&["server"], &ports, &join]), 3),
        (all(&[&["up"], &ports, &join]), 3),
        (all(&[&["up", "-d"], &ports, &join]), 3),
        (all(&[&["up", "-d"], &ports, &bad]), 1),
        (all(&[&["up"], &ports, &["--data-dir", &data, "--join", "https://192.0.2.1:6443", "--token", &token]]), 2),
        (all(&[&["up"], &ports, &["--data-dir", &data, "--join", &server]]), 2),
        (all(&[&["kubeconfig"], &which]), 3),
        (all(&[&["status"], &which]), 3),
        (all(&[&["token", "list"], &which]), 3),
        (all(&[&["token", "create"], &which]), 3),
        (all(&[&["encryption", "status"], &which]), 3),
        (all(&[&["encryption", "rotate"], &which]), 3),
        (all(&[&["encryption", "resources", "configmaps"], &which]), 3),
        (all(&[&["member", "list"], &which]), 3),
        (all(&[&["logs", "pod"], &which]), 3),
        (all(&[&["tap", "web"], &which]), 3),
        (all(&[&["routes", "web"], &which]), 3),
        (all(&[&["push", &wasm, "hello"], &which]), 3),
        (all(&[&["backup", &backup], &which]), 3),
        (all(&[&["node", "--port", "0"], &bad]), 1),
        (all(&[&["up"], &ports, &bad]), 1),
        (all(&[&["status", "--kubeconfig", "/none"]]), 1),
        (all(&[&["status", "--nonsense"]]), 2),
    ] {
        let mut process = Command::new(coracle());
        process.args(&arguments).env_remove("KUBECONFIG").env_remove("CORACLE_DATA_DIR").env_remove("CORACLE_TOKEN");
        let output = output(&mut process);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
    }
}

#[test]
fn a_cluster_in_the_background_is_started_stopped_forgotten_and_founded_again() {
    let dir = tempfile::tempdir().expect("a directory");
    let data = dir.path().join("data");
    let coracle = |arguments: &[&str]| {
        let mut command = Command::new(coracle());
        command.args(arguments).env("CORACLE_DATA_DIR", &data).env_remove("KUBECONFIG");
        output(&mut command)
    };
    let manifest = dir.path().join("app.yaml");
    // What is of a kind that is defined there, too, in whatever order.
    let text = "apiVersion: example.org/v1\nkind: Gadget\nmetadata: {name: app}\n---\n\
        apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nmetadata: {name: gadgets.example.org}\nspec:\n  \
        group: example.org\n  names: {kind: Gadget, plural: gadgets}\n  scope: Namespaced\n  \
        versions: [{name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object}}}]\n";
    std::fs::write(&manifest, text).expect("write a file");
    // As people type it: the letters together.
    let up = ["up", "--api-port", "0", "--registry-port", "0", "-df", manifest.to_str().expect("a path")];
    for _ in 0..2 {
        let started = coracle(&up);
        assert!(started.status.success(), "{}", String::from_utf8_lossy(&started.stderr));
        assert!(String::from_utf8_lossy(&started.stdout).ends_with("ready\n"));
        assert!(coracle(&["status"]).status.success());
        let stopped = coracle(&["down"]);
        assert!(stopped.status.success(), "{}", String::from_utf8_lossy(&stopped.stderr));
        let asked = coracle(&["status"]);
        let said = String::from_utf8_lossy(&asked.stderr).into_owned();
        assert_eq!((asked.status.code(), said.lines().count()), (Some(3), 1), "{said}");
        assert!(said.contains("does not answer") && !said.contains('\u{1b}'), "{said}");
        let forgotten = coracle(&["reset", "--yes"]);
        assert!(forgotten.status.success(), "{}", String::from_utf8_lossy(&forgotten.stderr));
        assert!(!data.exists(), "everything in it was the cluster's");
    }
}

#[test]
fn who_interrupts_a_start_in_the_background_ends_what_it_started() {
    let dir = tempfile::tempdir().expect("a directory");
    let data = dir.path().join("data");
    let mut command = Command::new(coracle());
    command.args(["up", "--api-port", "0", "--registry-port", "0", "-d"]).env("CORACLE_DATA_DIR", &data);
    let starting = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("start it");
    // It has begun when there is a log.
    let begun = Instant::now();
    while !data.join("coracle.log").exists() {
        assert!(begun.elapsed() < Duration::from_secs(60), "there is no log");
        std::thread::sleep(Duration::from_millis(5));
    }
    let sent = Command::new("kill").args(["-INT", &starting.id().to_string()]).status().expect("run kill");
    assert!(sent.success());
    let ended = starting.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&ended.stderr);
    let coracle =
        |word: &str| output(Command::new(coracle()).arg(word).env("CORACLE_DATA_DIR", &data).env_remove("KUBECONFIG"));
    match ended.status.success() {
        // It was ready, just before.
        true => assert!(coracle("down").status.success()),
        false => assert!(ended.status.code() == Some(1) && said.contains("what was started has ended"), "{said}"),
    }
    assert!(!coracle("status").status.success(), "something runs");
}

#[test]
fn status_and_push_speak_of_the_cluster_that_is_meant() {
    let cluster = Cluster::start();
    let output = cluster.coracle(&["status", "-o", "json"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let status: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert!(status["apiUrl"].as_str().is_some_and(|url| url.starts_with("https://127.0.0.1:")), "{status}");
    assert_eq!(status["nodes"], serde_json::json!({"total": 1, "ready": 1}));
    assert!(status["memoryBytes"].as_u64().is_some_and(|bytes| bytes > 1 << 20));

    let file = cluster.data_dir().join("not.wasm");
    std::fs::write(&file, "plain text").expect("write a file");
    let output = cluster.coracle(&["push", file.to_str().expect("a path"), "x"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("is not WebAssembly"), "{said}");
    let output = cluster.coracle(&["push", "/none.wasm", "x"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("/none.wasm"));
}

#[test]
fn what_is_pushed_is_compiled_before_a_pod_names_it() {
    let cluster = Cluster::start();
    let file = guest("hello");
    let push = |arguments: &[&str]| {
        let output = cluster.coracle(&[&["push", file.to_str().expect("a path")], arguments].concat());
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (is_well, said) = push(&["hello:v1"]);
    assert!(is_well && said.contains("compile hello:v1"), "{said}");
    cluster.kubectl("run hello --image=hello:v1");
    cluster.eventually("get pod hello", |text| text.contains("1/1"));
    let reasons = cluster.eventually("get events -o jsonpath={.items[*].reason}", |text| text.contains("Started"));
    assert!(reasons.contains("Pulled") && !reasons.contains("Compiling"), "{reasons}");
    let (is_well, said) = push(&["hello:v2", "--no-wait"]);
    assert!(is_well && !said.contains("compile"), "{said}");

    // It has the form of a component that runs here, and wants what nobody has: pushed, and told at once.
    let text = "(component (import \"acme:robots/arm@1.0.0\" (instance (export \"lift\" (func))))
        (instance $i) (export \"wasi:cli/run@0.2.0\" (instance $i)))";
    let strange = cluster.data_dir().join("strange.wasm");
    std::fs::write(&strange, wat::parse_str(text).expect("a component")).expect("write a file");
    let output = cluster.coracle(&["push", strange.to_str().expect("a path"), "strange"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        !output.status.success() && said.contains("is pushed and cannot run") && said.contains("acme:robots"),
        "{said}"
    );
}

#[test]
fn a_directory_in_use_and_a_port_in_use_are_told_apart() {
    let cluster = Cluster::start();
    let dir = cluster.data_dir();
    let dir = dir.to_str().expect("a path");
    let said = fails(&["up", "--data-dir", dir, "--api-port", "0", "--registry-port", "0"]);
    assert!(said.contains("another") && said.contains(dir), "{said}");

    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("its address").port().to_string();
    let other = tempfile::tempdir().expect("a directory");
    let other = other.path().to_str().expect("a path");
    let said = fails(&["up", "--data-dir", other, "--api-port", &port, "--registry-port", "0"]);
    assert!(said.contains(&port) && said.contains("--api-port"), "{said}");
    // In the background the same words, and not where they are.
    let before = "error: of an earlier start\n";
    std::fs::write(std::path::Path::new(other).join("coracle.log"), before).expect("write the log");
    let in_background = fails(&["up", "-d", "--data-dir", other, "--api-port", &port, "--registry-port", "0"]);
    let error = |said: &str| said.lines().find(|line| line.starts_with("error: ")).map(str::to_owned);
    assert_eq!(error(&in_background), error(&said), "{in_background}");
    assert!(error(&said).is_some() && !in_background.contains("earlier"), "{in_background}");
    // So with the port of the node.
    let said = fails(&["up", "--data-dir", other, "--api-port", "0", "--registry-port", "0", "--kubelet-port", &port]);
    assert!(said.contains(&port) && said.contains("--kubelet-port"), "{said}");
}

#[test]
fn what_others_leave_in_the_environment_stops_no_start_and_no_command() {
    let dir = tempfile::tempdir().expect("a directory");
    let coracle = |arguments: &[&str]| {
        let mut command = Command::new(coracle());
        command.args(arguments).env("CORACLE_DATA_DIR", dir.path().join("data")).env_remove("KUBECONFIG");
        command.env("CORACLE_TOKEN", "left").env("HTTPS_PROXY", "http://127.0.0.1:1").env("CORACLE_LOG", "a=loud");
        command
            .stdin(Stdio::null())
            .env("OTEL_EXPORTER_OTLP_ENDPOINT", "")
            .env("OTEL_TRACES_SAMPLER_ARG", "parentbased_always_on");
        output(&mut command)
    };
    let said = |output: &std::process::Output| String::from_utf8_lossy(&output.stderr).into_owned();
    let started = coracle(&["up", "-d", "--api-port", "0"]);
    assert!(started.status.success() && said(&started).contains("CORACLE_LOG is not heeded"), "{}", said(&started));
    // What only reads tells and changes nothing; what takes out is asked for.
    let widened = coracle(&["encryption", "resources", "configmaps"]);
    assert!(widened.status.success(), "{}", said(&widened));
    let listed = || String::from_utf8_lossy(&coracle(&["encryption", "resources"]).stdout).into_owned();
    assert_eq!(listed(), "configmaps\nsecrets\n");
    let refused = coracle(&["encryption", "resources", "events"]);
    assert!(
        refused.status.code() == Some(1) && said(&refused).contains("configmaps is no longer"),
        "{}",
        said(&refused)
    );
    assert_eq!(listed(), "configmaps\nsecrets\n");
    let narrowed = coracle(&["encryption", "resources", "events", "--yes"]);
    assert!(narrowed.status.success(), "{}", said(&narrowed));
    assert_eq!(listed(), "events\nsecrets\n");
    // It is reached from nowhere else, as it says.
    let printed = coracle(&["kubeconfig"]);
    assert!(printed.status.code() == Some(1) && said(&printed).contains("--bind 0.0.0.0"), "{}", said(&printed));
    let printed = coracle(&["kubeconfig", "--server", "https://api.example:6443"]);
    let config = String::from_utf8_lossy(&printed.stdout).into_owned();
    assert!(
        config.contains("https://api.example:6443") && said(&printed).contains("ends on 2"),
        "{config}{}",
        said(&printed)
    );
    assert!(coracle(&["down"]).status.success());
}

#[test]
fn an_empty_variable_names_no_directory() {
    let home = tempfile::tempdir().expect("a directory");
    let mut status = Command::new(coracle());
    status.arg("status").env("CORACLE_DATA_DIR", "").env("HOME", home.path());
    let status = output(status.env_remove("KUBECONFIG").env_remove("XDG_DATA_HOME"));
    let said = String::from_utf8_lossy(&status.stderr);
    assert!(status.status.code() == Some(1) && said.contains("no cluster is known"), "{said}");
}

/// Whoever reads it may be gone before, as with `coracle up 2>&1 | tee log` at Ctrl-C, and the disk of a log may be full.
#[test]
fn nobody_has_to_hear_what_is_said_on_standard_error() {
    let gone = || std::io::pipe().map(|(_, writer)| Stdio::from(writer)).expect("a pipe");
    let full = || Stdio::from(std::fs::File::options().write(true).open("/dev/full").expect("/dev/full"));
    let dir = tempfile::tempdir().expect("a directory");
    for (case, error) in [("gone", gone()), ("full", full())] {
        let mut up = Command::new(coracle());
        up.args(["up", "--api-port", "0", "--registry-port", "0", "--data-dir"]).arg(dir.path().join(case));
        // Much is said from everywhere, and some of it when it ends.
        up.env("CORACLE_LOG", "debug").env_remove("KUBECONFIG").stdin(Stdio::null());
        let mut cluster = Background::start_telling(up, error);
        cluster.line(|line| line == "ready");
        assert_eq!(cluster.terminate(), Some(0), "{case}");
    }
    for error in [gone(), full()] {
        let mut status = Command::new(coracle());
        let status = status.args(["status", "--kubeconfig", "/none"]).stderr(error).status().expect("run coracle");
        assert_eq!(status.code(), Some(1));
    }
}

#[test]
fn who_has_read_enough_of_a_completion_is_no_fault() {
    let mut child = Command::new(coracle());
    let mut child =
        child.args(["completion", "bash"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("run");
    drop(child.stdout.take());
    let ended = child.wait_with_output().expect("it ends");
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
}

#[test]
fn a_manifest_with_a_mistake_is_told_before_anything_starts() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("app.yaml");
    std::fs::write(&file, "kind: Pod\n").expect("write a file");
    let data = dir.path().join("data");
    let said = fails(&["up", "--data-dir", data.to_str().expect("a path"), "-f", file.to_str().expect("a path")]);
    assert!(said.contains("apiVersion is missing"), "{said}");
    assert!(!data.exists());
}

#[test]
fn the_demo_shows_an_answer_and_leaves() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut demo = Command::new(coracle());
    demo.args(["demo", "--exit", "--api-port", "0", "--registry-port", "0", "--data-dir"]).arg(dir.path().join("data"));
    let output = demo.current_dir(root()).env_remove("KUBECONFIG").output().expect("run coracle");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}\n{err}");
    assert!(out.contains("Ahoy from pod hello-") && out.contains("KUBECONFIG=") && out.contains("\nready\n"), "{out}");
}
