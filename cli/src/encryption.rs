//! `coracle encryption`: what the cluster encrypts before it keeps it, and the key.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Subcommand;
use coracle_sdk::{Encryption, Remote};

use crate::cluster::Which;
use crate::down::agrees;
use crate::output::{Step, say, tell};

/// Show and change what is encrypted before the cluster keeps it, and renew the key
#[derive(clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show the newest key, what is encrypted, and how much is not yet as it should be
    Status {
        #[command(flatten)]
        which: Which,
    },
    /// Make a new key, and encrypt everything anew under it
    ///
    /// All servers know the key before anything is written under it. The cluster encrypts by itself what is stored, also when this
    /// command or a server ends meanwhile; called again, the command goes on to wait. Older keys go by themselves, minutes after
    /// nothing needs them.
    Rotate {
        /// Do not wait until everything is encrypted anew
        #[arg(long)]
        no_wait: bool,
        #[command(flatten)]
        which: Which,
    },
    /// Say which resources are encrypted, all of them; without any, show which are. Secrets always are
    ///
    /// What is stored is written anew by the cluster, of resources that are no longer named in the clear: whoever leaves one out is
    /// asked first.
    Resources {
        /// As `kubectl api-resources -o name` shows them: configmaps, deployments.apps, or a custom resource
        #[arg(value_name = "RESOURCE")]
        resources: Vec<String>,
        /// Do not ask before what was encrypted is written in the clear
        #[arg(short, long, requires = "resources")]
        yes: bool,
        /// Do not wait until everything is written anew
        #[arg(long, requires = "resources")]
        no_wait: bool,
        #[command(flatten)]
        which: Which,
    },
}

/// How often it is asked how far the cluster is.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Runs the command.
pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    match arguments.command {
        Command::Status { which } => print(&which.connect().await?.encryption().await.context("ask the cluster")?)?,
        Command::Rotate { no_wait, which } => {
            let remote = which.connect().await?;
            let before = remote.encryption().await.context("ask the cluster")?;
            let now = remote.rotate_encryption_key().await.context("make a new key")?;
            if now.key == before.key {
                tell!("the objects of an earlier command are still being encrypted anew: no other key was made");
            }
            finish(&remote, now, no_wait).await?;
        }
        Command::Resources { resources, which, .. } if resources.is_empty() => {
            let now = which.connect().await?.encryption().await.context("ask the cluster")?;
            for resource in &now.resources {
                say!("{resource}")?;
            }
            if now.key.is_none() {
                tell!("nothing is encrypted yet: {}", in_words(&now));
            }
        }
        Command::Resources { resources, yes, no_wait, which } => {
            let remote = which.connect().await?;
            let resources: BTreeSet<String> = resources.into_iter().chain(["secrets".to_owned()]).collect();
            let before = remote.encryption().await.context("ask the cluster")?;
            if let Some(opened) = opened(&before.resources, &resources)
                && !yes
                && !agrees(&opened)?
            {
                bail!("nothing was changed: name all that is to be encrypted, or say --yes");
            }
            let now = remote.encrypt_resources(&resources).await.context("say what is encrypted")?;
            finish(&remote, now, no_wait).await?;
        }
    }
    Ok(())
}

/// What is no longer encrypted with `next`, in words.
fn opened(before: &BTreeSet<String>, next: &BTreeSet<String>) -> Option<String> {
    let opened: Vec<&str> = before.difference(next).map(String::as_str).collect();
    let is = if opened.len() == 1 { "is" } else { "are" };
    (!opened.is_empty()).then(|| {
        format!(
            "{} {is} no longer encrypted then: what is stored of it is written anew in the clear",
            opened.join(", ")
        )
    })
}

/// Waits until nothing is left to be written anew, and shows how far it is.
async fn finish(remote: &Remote, mut now: Encryption, no_wait: bool) -> anyhow::Result<()> {
    if !no_wait && now.left > 0 {
        let step = Step::begin(format!("encrypt {} objects anew", now.left));
        while now.left > 0 {
            step.detail(&format!("{} left", now.left));
            tokio::time::sleep(LOOK_EVERY).await;
            now = remote.encryption().await.context("ask how far it is; the cluster goes on by itself")?;
        }
        step.done();
    }
    print(&now)
}

fn print(encryption: &Encryption) -> anyhow::Result<()> {
    say!("key        {}", key(encryption))?;
    if !encryption.older_keys.is_empty() {
        let older: Vec<String> = encryption.older_keys.iter().map(u64::to_string).collect();
        say!("older      {} (they go minutes after nothing needs them)", older.join(" "))?;
    }
    let resources: Vec<&str> = encryption.resources.iter().map(String::as_str).collect();
    say!("resources  {}", if resources.is_empty() { "-".to_owned() } else { resources.join(" ") })?;
    say!("objects    {}, {} of them not yet as they should be", encryption.objects, encryption.left)?;
    for unreadable in &encryption.unreadable {
        say!("unreadable  {}: {}", unreadable.what, unreadable.why)?;
    }
    let more = encryption.unreadable_count.saturating_sub(encryption.unreadable.len());
    if more > 0 {
        say!("unreadable  {more} more")?;
    }
    Ok(())
}

/// What is encrypted and under which key, in a line.
pub fn in_words(encryption: &Encryption) -> String {
    if encryption.key.is_none() {
        return match held_back(encryption) {
            Some(servers) => format!("none yet: Secrets are in the clear because of {servers}"),
            None => "none yet: not all servers have said that their version knows of it".to_owned(),
        };
    }
    let resources: Vec<&str> = encryption.resources.iter().map(String::as_str).collect();
    let left = match encryption.left {
        0 => String::new(),
        left => format!("; {left} objects are not under it yet"),
    };
    format!("{} under key {}{left}", resources.join(" "), key(encryption))
}

/// The newest key, in words.
fn key(encryption: &Encryption) -> String {
    match (encryption.key, encryption.age_days()) {
        (Some(key), Some(days)) => format!("{key}, {days} days old"),
        (Some(key), None) => key.to_string(),
        (None, _) => match held_back(encryption) {
            Some(servers) => format!("none, because of {servers}"),
            None => "none as long as not all servers know of it".to_owned(),
        },
    }
}

/// The servers because of which there is no key.
fn held_back(encryption: &Encryption) -> Option<String> {
    let servers = encryption.held_back_by.iter().map(|server| {
        let (name, member) = (&server.name, server.member);
        match server.absent {
            true => format!("{name} ({member}), which has not come: `coracle member remove {member}` if it does not"),
            false => format!("{name} ({member}), whose version does not know of it"),
        }
    });
    let servers: Vec<String> = servers.collect();
    (!servers.is_empty()).then(|| servers.join("; "))
}

#[cfg(test)]
mod tests {
    use coracle_sdk::HeldBack;

    use super::*;

    #[test]
    fn what_is_no_longer_encrypted_is_named() {
        let set = |names: &[&str]| names.iter().map(ToString::to_string).collect::<BTreeSet<_>>();
        let before = set(&["secrets", "configmaps", "events"]);
        assert_eq!(opened(&before, &set(&["secrets", "configmaps", "events", "pods"])), None);
        let said = opened(&before, &set(&["secrets", "pods"])).unwrap();
        assert!(said.starts_with("configmaps, events are no longer encrypted"), "{said}");
        let said = opened(&before, &set(&["secrets", "events"])).unwrap();
        assert!(said.starts_with("configmaps is no longer encrypted"), "{said}");
    }

    #[test]
    fn a_line_says_whether_secrets_are_encrypted_and_under_which_key() {
        let none = Encryption {
            key: None,
            created: None,
            held_back_by: Vec::new(),
            older_keys: Vec::new(),
            resources: BTreeSet::new(),
            objects: 0,
            left: 0,
            unreadable: Vec::new(),
            unreadable_count: 0,
        };
        assert!(in_words(&none).starts_with("none yet"));
        let held = |member, absent| HeldBack { member, name: format!("s{member}"), absent };
        let said = in_words(&Encryption { held_back_by: vec![held(2, false), held(3, true)], ..none.clone() });
        let parts = ["none yet: Secrets are in the clear because of s2 (2)", "; s3 (3)", "`coracle member remove 3`"];
        assert!(parts.iter().all(|part| said.contains(part)) && !said.contains("remove 2"), "{said}");
        let resources = ["secrets", "configmaps"].map(str::to_owned).into();
        let some = Encryption { key: Some(3), created: Some(0), resources, ..none };
        let said = in_words(&some);
        assert!(said.starts_with("configmaps secrets under key 3, ") && said.ends_with(" days old"), "{said}");
        let said = in_words(&Encryption { left: 2, ..some });
        assert!(said.ends_with("; 2 objects are not under it yet"), "{said}");
    }
}
