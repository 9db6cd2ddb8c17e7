//! Three servers that are one cluster, each a process of the real executable.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tempfile::TempDir;
use tokio::process::{Child, Command};

use super::Error;
use crate::{Member, Remote, TokenRole};

/// What they are called.
pub const NAMES: [&str; 3] = ["one", "two", "three"];
/// Until a server is ready, or all three are whole again.
pub const START_DEADLINE: Duration = Duration::from_secs(120);
/// Who was heard of within this time is whole.
const HEARD_MS: u64 = 1_000;

/// One server's process.
pub struct Server {
    /// Its process.
    pub child: Child,
    dir: PathBuf,
    /// A client of it alone.
    pub remote: Remote,
}

/// Three of them; they end with this value.
pub struct Servers {
    program: PathBuf,
    dir: TempDir,
    /// In the order of [`NAMES`].
    pub all: Vec<Server>,
}

impl Server {
    /// Starts the server called `name` in `dir`; returns when it is ready.
    pub async fn start(program: &Path, dir: PathBuf, name: &str, join: &[String]) -> Result<Server, Error> {
        let mut child = Command::new(program)
            .args(["server", "--bind", "127.0.0.1", "--api-port", "0", "--registry-port", "0", "--name", name])
            .args(join)
            .arg("--data-dir")
            .arg(&dir)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            // What they say of each other's ends is expected here.
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        super::cluster::ready(&mut child, &format!("the server {name}")).await?;
        let remote = Remote::connect_once(&dir.join("kubeconfig")).await?;
        Ok(Server { child, dir, remote })
    }
}

impl Servers {
    /// Starts them; returns when all are voters.
    pub async fn start(program: &Path) -> Result<Servers, Error> {
        let dir = tempfile::tempdir()?;
        let first = Server::start(program, dir.path().join(NAMES[0]), NAMES[0], &[]).await?;
        let token = first.remote.create_token(TokenRole::Server, START_DEADLINE * 10).await?;
        let url = first.remote.status().await?.api_url;
        let join = ["--join".to_owned(), url, "--token".to_owned(), token.to_string()];
        let mut all = vec![first];
        for name in &NAMES[1..] {
            all.push(Server::start(program, dir.path().join(name), name, &join).await?);
        }
        let servers = Servers { program: program.to_owned(), dir, all };
        servers.whole_leader().await?;
        Ok(servers)
    }

    /// Waits until all three are voters and have what the leader has; which one leads.
    pub async fn whole_leader(&self) -> Result<usize, Error> {
        let whole = async {
            loop {
                for (at, server) in self.all.iter().enumerate() {
                    if let Ok(members) = server.remote.members().await
                        && is_whole(&members)
                        && members.iter().any(|member| member.leads && member.name == NAMES[at])
                    {
                        return at;
                    }
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let whole = tokio::time::timeout(START_DEADLINE, whole).await;
        whole.map_err(|_| format!("the servers are not whole after {START_DEADLINE:?}").into())
    }

    /// Starts one again that has ended.
    pub async fn restart(&mut self, at: usize) -> Result<(), Error> {
        let dir = self.all[at].dir.clone();
        self.all[at] = Server::start(&self.program, dir, NAMES[at], &[]).await?;
        Ok(())
    }

    /// Ends them.
    pub async fn stop(mut self) -> Result<(), Error> {
        stop(self.all.iter_mut().map(|server| &mut server.child)).await?;
        self.dir.close()?;
        Ok(())
    }
}

/// Whether all three are voters that the leader hears and that have what it has, nearly.
fn is_whole(members: &[Member]) -> bool {
    let last = members.iter().filter_map(|member| member.matched).max().unwrap_or(0);
    members.len() == NAMES.len()
        && members.iter().all(|member| {
            member.role == "voter"
                && member.heard_milliseconds.is_some_and(|heard| heard < HEARD_MS)
                && member.matched.is_some_and(|matched| matched + 4 >= last)
        })
}

/// Starts a server and nodes that join it, each called and told what `nodes` says, in `dir`.
pub async fn with_nodes(program: &Path, dir: &Path, nodes: &[(&str, &[&str])]) -> Result<(Server, Vec<Child>), Error> {
    let server = Server::start(program, dir.join("server"), "server", &[]).await?;
    let token = server.remote.create_token(TokenRole::Node, START_DEADLINE * 10).await?.to_string();
    let url = server.remote.status().await?.api_url;
    let mut children = Vec::new();
    for (name, arguments) in nodes {
        let arguments = [&["--join", &url, "--token", &token], *arguments].concat();
        children.push(start_node(program, &dir.join(name), name, &arguments).await?);
    }
    Ok((server, children))
}

/// Starts the node called `name` in `dir`, told what `arguments` say; returns when pods can run there.
async fn start_node(program: &Path, dir: &Path, name: &str, arguments: &[&str]) -> Result<Child, Error> {
    let mut child = Command::new(program)
        .args(["node", "--name", name, "--port", "0", "--http-port", "off", "--https-port", "off"])
        .args(arguments)
        .arg("--data-dir")
        .arg(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    super::cluster::ready(&mut child, &format!("the node {name}")).await?;
    Ok(child)
}

/// Asks processes to end and waits until they have.
pub async fn stop<'a>(children: impl IntoIterator<Item = &'a mut Child>) -> Result<(), Error> {
    let children: Vec<_> = children.into_iter().collect();
    for child in &children {
        terminate(child)?;
    }
    for child in children {
        tokio::time::timeout(START_DEADLINE, child.wait()).await??;
    }
    Ok(())
}

/// Asks a process to end.
pub fn terminate(child: &Child) -> Result<(), Error> {
    let id =
        child.id().and_then(|id| rustix::process::Pid::from_raw(id.cast_signed())).ok_or("it has ended already")?;
    Ok(rustix::process::kill_process(id, rustix::process::Signal::TERM)?)
}
