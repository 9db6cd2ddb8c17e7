//! `coracle up`: a cluster on this machine.

use std::io::{Read as _, Seek as _, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::Context;
use coracle_sdk::{Cluster, manifests};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

use crate::cluster::{self, Here, Signals, drain, usage};
use crate::output::{self, Step, tell};
use crate::{anew, memory, own_log};

/// Start a cluster on this machine and run it until Ctrl-C
///
/// A second start on the same data directory finds everything again. `ready` is printed on standard output when the
/// API answers, the node is Ready and the kubeconfig in the data directory is complete.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    here: Here,
    /// Manifests to apply: a file, or a directory of *.yaml, *.yml and *.json; may be repeated
    #[arg(short = 'f', long = "filename", value_name = "FILE|DIR")]
    files: Vec<PathBuf>,
    /// Leave it running in the background once it is ready; `coracle down` stops it
    #[arg(short, long)]
    detach: bool,
}

/// Runs the command.
pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    // Read first: a mistake in a file is told before anything starts.
    let objects = to_apply(&arguments.files, anew::is_another_life())?;
    // The process in the background is started with the same words.
    if arguments.detach && std::env::var_os(IN_BACKGROUND).is_none() {
        to_detach(&arguments)?;
        return detach(&arguments.here.data_dir("coracle")?).await;
    }
    if std::env::var_os(IN_BACKGROUND).is_some() {
        tokio::spawn(own_log::keep(arguments.here.data_dir("coracle")?.join(own_log::NAME)));
    }
    let program = anew::program()?;
    let mut signals = Signals::take()?;
    let step = Step::begin("start the cluster");
    let cluster = tokio::select! {
        cluster = arguments.here.start("coracle", Some(&program)) => cluster?,
        () = signals.received() => return Ok(()),
    };
    step.done();
    let applied = tokio::select! {
        applied = apply(&cluster, &objects) => applied,
        () = signals.received() => return drain(cluster, &mut signals).await,
    };
    if let Err(error) = applied.and_then(|()| announce(&cluster)) {
        cluster.shutdown().await;
        return Err(error);
    }
    cluster::run(cluster, &program, &mut signals).await
}

/// What is applied. A process that begins anew has applied it: others may have changed it since, and the files may be gone.
fn to_apply(files: &[PathBuf], is_another_life: bool) -> anyhow::Result<Vec<manifests::Manifest>> {
    match is_another_life {
        true => Ok(Vec::new()),
        false => Ok(manifests::read(files)?),
    }
}

/// Whether what is started can be left alone: nobody reads its standard output once it is ready.
fn to_detach(arguments: &Arguments) -> anyhow::Result<()> {
    match arguments.here.tells_standard_output() {
        true => Err(usage("in the background nobody reads standard output: name a file with --audit-log-path")),
        false => Ok(()),
    }
}

/// Set for the process that `--detach` starts.
const IN_BACKGROUND: &str = "CORACLE_IN_BACKGROUND";

/// Starts the same command as a process of its own, without a terminal, and leaves when it is ready. Who interrupts it before
/// ends what it has started.
async fn detach(dir: &Path) -> anyhow::Result<()> {
    let mut signals = Signals::take()?;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .with_context(|| format!("make {}", dir.display()))?;
    let log = dir.join(own_log::NAME);
    let file = std::fs::File::options().create(true).append(true).mode(0o600).open(&log);
    let file = file.with_context(|| format!("open {}", log.display()))?;
    let before = file.metadata().with_context(|| format!("look at {}", log.display()))?.len();
    // By the path at which this one was called, which may be a link: that is what it begins anew with.
    let mut command = Command::new(anew::program()?.path());
    command.args(std::env::args_os().skip(1)).env(IN_BACKGROUND, "1");
    // A group of its own: Ctrl-C in this terminal is not for it.
    command.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(file);
    let mut child = command.spawn().context("start the cluster's process")?;
    let output = child.stdout.take().context("the process has an output")?;
    let mut lines = BufReader::new(output).lines();
    let told = async {
        while let Ok(Some(line)) = lines.next_line().await {
            output::line(&line)?;
            if line == "ready" {
                return Ok(true);
            }
        }
        anyhow::Ok(false)
    };
    let mut is_interrupted = tokio::select! {
        is_ready = told => match is_ready {
            Ok(true) => {
                let process = child.id().unwrap_or_default();
                tell!("running in the background as process {process}; its log is {}", log.display());
                return Ok(());
            }
            Ok(false) => false,
            // Nobody would know of it.
            Err(error) => {
                tell!("{error:#}");
                true
            }
        },
        () = signals.received() => true,
    };
    let mut is_asked = is_interrupted;
    let status = loop {
        if is_asked {
            is_interrupted = true;
            tell!("stopping what was started (once more to stop at once)");
            if let Some(process) = child.id().and_then(|id| Pid::from_raw(id.cast_signed())) {
                kill_process(process, Signal::TERM).context("end the cluster's process")?;
            }
        }
        tokio::select! {
            status = child.wait() => break status.context("wait for the cluster's process")?,
            () = signals.received() => is_asked = true,
        }
    };
    if is_interrupted {
        anyhow::bail!("interrupted before the cluster was ready; what was started has ended ({status})")
    }
    let why = said_at_the_end(&log, before).unwrap_or_default();
    Err(match (error_of(&why), status.code().and_then(|code| u8::try_from(code).ok())) {
        (Some(why), Some(code)) if code != 0 => Ended { code, why: why.to_owned() }.into(),
        _ => anyhow::anyhow!("the cluster did not start ({status}); {} says why", log.display()),
    })
}

/// The process in the background has ended, and has said why.
#[derive(Debug)]
pub struct Ended {
    /// Its exit code.
    pub code: u8,
    why: String,
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.why)
    }
}

impl std::error::Error for Ended {}

/// Bytes of the log's end that are looked at for that.
const SAID_BYTES_MAX: u64 = 64 << 10;

/// What has come to the log since it had `before` bytes, or its end.
fn said_at_the_end(log: &Path, before: u64) -> std::io::Result<String> {
    let mut file = std::fs::File::open(log)?;
    let length = file.metadata()?.len();
    // It begins anew when it is too long.
    let since = if before <= length { before } else { 0 };
    file.seek(SeekFrom::Start(since.max(length.saturating_sub(SAID_BYTES_MAX))))?;
    let mut said = Vec::new();
    file.take(SAID_BYTES_MAX).read_to_end(&mut said)?;
    Ok(String::from_utf8_lossy(&said).into_owned())
}

/// The last error in it, with all that was said after.
fn error_of(said: &str) -> Option<&str> {
    const ERROR: &str = "error: ";
    let at = match said.rfind(&format!("\n{ERROR}")) {
        Some(before) => before + 1 + ERROR.len(),
        None => said.starts_with(ERROR).then_some(ERROR.len())?,
    };
    Some(said[at..].trim_end()).filter(|why| !why.is_empty())
}

/// Applies `objects`, saying each.
pub async fn apply(cluster: &Cluster, objects: &[manifests::Manifest]) -> anyhow::Result<()> {
    if objects.is_empty() {
        return Ok(());
    }
    let step = Step::begin(match objects.len() {
        1 => "apply 1 object".to_owned(),
        many => format!("apply {many} objects"),
    });
    manifests::apply(cluster.remote().client(), objects, |applied| step.detail(applied)).await?;
    step.done();
    Ok(())
}

/// Prints where everything is, and then `ready`. Whoever was told so before may have gone: a process that begins anew says it to nobody.
pub fn announce(cluster: &Cluster) -> anyhow::Result<()> {
    memory::started();
    match announced(cluster) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        told => Ok(told?),
    }
}

fn announced(cluster: &Cluster) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "api        {}", cluster.api_url())?;
    writeln!(out, "registry   {}", cluster.registry_address())?;
    writeln!(out, "kubeconfig {}", cluster.kubeconfig().display())?;
    output::ingress(&mut out, &cluster.ingress_urls())?;
    output::names(&mut out, cluster.dns_address())?;
    writeln!(out, "ready")?;
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_on_standard_output_is_not_left_to_nobody() {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            arguments: Arguments,
        }
        for (path, is_left) in [("-", false), ("/var/log/audit", true)] {
            let line = ["up", "-d", "--audit-policy-file", "policy", "--audit-log-path", path];
            let Line { arguments } = clap::Parser::parse_from(line);
            assert_eq!(to_detach(&arguments).is_ok(), is_left, "{path}");
        }
        let Line { arguments } = clap::Parser::parse_from(["up", "-d"]);
        to_detach(&arguments).unwrap();
    }

    #[test]
    fn why_a_start_in_the_background_failed_is_what_its_log_says_since() {
        for (said, expected) in [
            ("", None),
            ("ready\n", None),
            ("error: a\n", Some("a")),
            ("warn\nerror: a: b\n  more\n", Some("a: b\n  more")),
            ("error: a\nerror: b\n", Some("b")),
            ("an error: a\n", None),
            ("error: \n", None),
        ] {
            assert_eq!(error_of(said), expected, "{said}");
        }
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        std::fs::write(&log, "error: before\nerror: now\n").unwrap();
        assert_eq!(said_at_the_end(&log, 14).unwrap(), "error: now\n");
        assert_eq!(said_at_the_end(&log, 1000).unwrap(), "error: before\nerror: now\n", "it has begun anew");
        std::fs::write(&log, vec![b'x'; SAID_BYTES_MAX as usize + 10]).unwrap();
        assert_eq!(said_at_the_end(&log, 0).unwrap().len() as u64, SAID_BYTES_MAX);
    }

    #[test]
    fn who_begins_anew_neither_reads_nor_applies_what_it_has_applied() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("map.yaml");
        let files = [file.clone()];
        assert!(to_apply(&files, false).is_err(), "there is no such file");
        assert!(to_apply(&files, true).unwrap().is_empty());
        std::fs::write(&file, "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n").unwrap();
        assert_eq!(to_apply(&files, false).unwrap().len(), 1);
        assert!(to_apply(&files, true).unwrap().is_empty());
    }
}
