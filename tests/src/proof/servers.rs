//! The servers of a proof: real processes, each in a namespace and a directory of its own.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use coracle_sdk::Remote;
use tempfile::TempDir;

use super::SERVERS;
use super::disks::Disks;
use super::network::{Network, address};
use crate::{DEADLINE, coracle, run};

/// What the servers are called.
pub const NAMES: [&str; SERVERS] = ["one", "two", "three"];
/// How long a server may take to say who leads.
const ASK: Duration = Duration::from_secs(1);

/// What runs; it ends with this.
#[derive(Default)]
struct Processes(Mutex<[Option<Child>; SERVERS]>);

impl Processes {
    fn lock(&self) -> MutexGuard<'_, [Option<Child>; SERVERS]> {
        self.0.lock().expect("nobody panics with it")
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        for child in self.lock().iter_mut().flatten() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Three servers that are one cluster.
pub struct Servers {
    /// The ways between them.
    pub network: Network,
    // They end before their disks do, and those before the directory.
    processes: Processes,
    /// What they write to.
    pub disks: Disks,
    dir: TempDir,
    /// A client of each, for this module's own questions.
    remotes: Vec<Remote>,
}

impl Servers {
    /// Starts them; returns when all are voters.
    pub async fn start() -> Servers {
        let network = Network::make();
        let dir = tempfile::tempdir().expect("a temporary directory");
        let disks = Disks::make(dir.path());
        let mut servers = Servers { network, processes: Processes::default(), disks, dir, remotes: Vec::new() };
        servers.launch(0, &[]);
        servers.connect(0).await;
        let mut token = Command::new(coracle());
        token
            .args(["token", "create", "--server"])
            .env("CORACLE_DATA_DIR", servers.data_dir(0))
            .env_remove("KUBECONFIG");
        let line = run(&mut token);
        let words: Vec<&str> = line.split_whitespace().skip(2).collect();
        for server in 1..SERVERS {
            servers.launch(server, &words);
            servers.connect(server).await;
        }
        servers.converge(DEADLINE).await.unwrap_or_else(|why| panic!("the servers are no cluster: {why}"));
        servers
    }

    /// Where a server keeps everything.
    pub fn data_dir(&self, server: usize) -> PathBuf {
        self.disks.mount(server).join("data")
    }

    fn log(&self, server: usize) -> PathBuf {
        self.dir.path().join(format!("{}.log", NAMES[server]))
    }

    /// The end of what a server wrote to standard error.
    pub fn said(&self, server: usize) -> String {
        let text = std::fs::read_to_string(self.log(server)).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(12)..].join("\n")
    }

    /// Leaves everything where it is, for a person to look at.
    pub fn keep(self) -> PathBuf {
        let Servers { dir, processes, disks, .. } = self;
        drop(processes);
        disks.keep();
        dir.keep()
    }

    fn launch(&self, server: usize, join: &[&str]) {
        let log = std::fs::File::options().create(true).append(true).open(self.log(server)).expect("open the log");
        let mut command = self.network.command(server, coracle());
        command.args(["server", "--name", NAMES[server], "--bind", &address(server), "--data-dir"]);
        command.arg(self.data_dir(server)).args(join);
        let output = log.try_clone().expect("the log");
        let child = command.stdin(Stdio::null()).stdout(output).stderr(log).spawn().expect("run nsenter");
        self.processes.lock()[server] = Some(child);
    }

    /// Waits for the first answer of a server.
    async fn connect(&mut self, server: usize) {
        let begun = Instant::now();
        loop {
            let kubeconfig = self.data_dir(server).join("kubeconfig");
            if kubeconfig.is_file()
                && let Ok(remote) = Remote::connect_once(&kubeconfig).await
                && remote.members().await.is_ok()
            {
                self.remotes.push(remote);
                return;
            }
            self.all_run().unwrap_or_else(|why| panic!("{why}"));
            assert!(begun.elapsed() < DEADLINE, "{} does not answer:\n{}", NAMES[server], self.said(server));
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// A new client of a server, which sends everything once.
    pub async fn remote(&self, server: usize) -> Remote {
        Remote::connect_once(&self.data_dir(server).join("kubeconfig")).await.expect("its kubeconfig is complete")
    }

    /// Starts a server again.
    pub fn restart(&self, server: usize) {
        self.launch(server, &[]);
    }

    /// Kills a server.
    pub fn kill(&self, server: usize) {
        if let Some(mut child) = self.processes.lock()[server].take() {
            child.kill().expect("kill our own child");
            child.wait().expect("wait for our own child");
        }
    }

    /// Sends a server a signal, as `STOP`.
    pub fn signal(&self, server: usize, name: &str) {
        let id = self.processes.lock()[server].as_ref().map(Child::id);
        if let Some(id) = id {
            run(Command::new("kill").arg(format!("-{name}")).arg(id.to_string()));
        }
    }

    /// Asks a server to end and waits until it has, which it must do well.
    pub async fn terminate(&self, server: usize) -> Result<(), String> {
        self.signal(server, "TERM");
        let begun = Instant::now();
        loop {
            {
                let mut processes = self.processes.lock();
                let Some(child) = &mut processes[server] else { return Ok(()) };
                if let Some(status) = child.try_wait().expect("wait for our own child") {
                    processes[server] = None;
                    return match status.success() {
                        true => Ok(()),
                        false => Err(format!("{} was asked to end, and ended with {status}", NAMES[server])),
                    };
                }
            }
            if begun.elapsed() > DEADLINE {
                return Err(format!("{} was asked to end, and did not within {DEADLINE:?}", NAMES[server]));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Whether all that were started and not ended by us are there; which one is not.
    pub fn all_run(&self) -> Result<(), String> {
        for (server, process) in self.processes.lock().iter_mut().enumerate() {
            if let Some(child) = process
                && let Some(status) = child.try_wait().expect("wait for our own child")
            {
                return Err(format!("{} ended by itself, with {status}:\n{}", NAMES[server], self.said(server)));
            }
        }
        Ok(())
    }

    /// Which server leads, as those that answer see it.
    pub async fn leader(&self) -> Option<usize> {
        for remote in &self.remotes {
            if let Ok(Ok(members)) = tokio::time::timeout(ASK, remote.members()).await
                && let Some(leader) = members.iter().find(|member| member.leads)
            {
                return NAMES.iter().position(|name| *name == leader.name);
            }
        }
        None
    }

    /// Waits until every server says that the same one leads, which hears all and finds that they have what it has; how long
    /// it took.
    pub async fn converge(&self, limit: Duration) -> Result<Duration, String> {
        let begun = Instant::now();
        loop {
            let seen = self.views().await;
            let Some(why) = wrong(&seen) else { return Ok(begun.elapsed()) };
            self.all_run()?;
            if begun.elapsed() > limit {
                let said: Vec<String> =
                    (0..SERVERS).map(|server| format!("{}:\n{}", NAMES[server], self.said(server))).collect();
                return Err(format!("not within {limit:?}: {why}\n{}", said.join("\n")));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn views(&self) -> Vec<Result<Vec<coracle_sdk::Member>, String>> {
        let mut views = Vec::new();
        for remote in &self.remotes {
            let asked = tokio::time::timeout(ASK, remote.members()).await;
            views.push(match asked {
                Ok(Ok(members)) => Ok(members),
                Ok(Err(error)) => Err(error.to_string()),
                Err(_) => Err("no answer".to_owned()),
            });
        }
        views
    }
}

/// What is not as it should be.
fn wrong(views: &[Result<Vec<coracle_sdk::Member>, String>]) -> Option<String> {
    if views.len() < SERVERS {
        return Some("not all are there".to_owned());
    }
    let mut leaders = Vec::new();
    for (server, view) in views.iter().enumerate() {
        let members = match view {
            Ok(members) => members,
            Err(error) => return Some(format!("{} says: {error}", NAMES[server])),
        };
        if members.iter().filter(|member| member.role == "voter").count() != SERVERS {
            return Some(format!("{} sees {members:?}", NAMES[server]));
        }
        let Some(leader) = members.iter().find(|member| member.leads) else {
            return Some(format!("{} knows of no leader", NAMES[server]));
        };
        leaders.push(leader.name.clone());
        let last = members.iter().filter_map(|member| member.matched).max().unwrap_or(0);
        let is_whole = |member: &coracle_sdk::Member| {
            member.heard_milliseconds.is_some_and(|heard| heard < 1_000)
                && member.matched.is_some_and(|matched| matched + 16 >= last)
        };
        if leader.name == NAMES[server] && !members.iter().all(is_whole) {
            return Some(format!("{} leads and sees {members:?}", NAMES[server]));
        }
    }
    leaders.dedup();
    (leaders.len() != 1).then(|| format!("they say that {leaders:?} lead"))
}

/// A file of a run, for a person to look at.
pub fn save(dir: &Path, name: &str, text: &str) {
    let path = dir.join(name);
    if let Err(error) = std::fs::write(&path, text) {
        eprintln!("write {}: {error}", path.display());
    }
}
