//! `coracle token`: what lets other machines join.

use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Subcommand;
use coracle_sdk::{TOKEN_TTL_MAX, TokenRole};

use crate::cluster::Which;
use crate::output::{say, tell};

/// Make, list and delete the tokens by which machines join the cluster
#[derive(clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make a token, and print the command that joins with it
    ///
    /// Any number of machines may join with it until it ends. It is printed this once; the cluster keeps its hash only.
    Create {
        /// How long it is good, as 30m, 2h or 1d; 7 days at most
        #[arg(long, value_name = "TIME", default_value = "1h", value_parser = time)]
        ttl: Duration,
        /// For servers, not for nodes: whoever has it gets all data and all keys of the cluster
        #[arg(long)]
        server: bool,
        #[command(flatten)]
        which: Which,
    },
    /// List tokens and when they end
    List {
        #[command(flatten)]
        which: Which,
    },
    /// Delete a token: nobody joins with it any more; who has joined stays
    Delete {
        /// Its id, as `list` shows it
        #[arg(value_name = "ID")]
        id: String,
        #[command(flatten)]
        which: Which,
    },
}

/// A number and a unit: s, m, h or d.
fn time(text: &str) -> Result<Duration, String> {
    let refuse = || format!("{text:?} is no time from 1s to 7d, as 30m, 2h or 1d");
    let (number, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or_else(refuse)?;
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 24 * 3600,
        _ => return Err(refuse()),
    };
    let number: u64 = number.parse().map_err(|_| refuse())?;
    let time = number.checked_mul(seconds).map(Duration::from_secs);
    time.filter(|time| !time.is_zero() && *time <= TOKEN_TTL_MAX).ok_or_else(refuse)
}

/// Runs the command.
pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    match arguments.command {
        Command::Create { ttl, server: is_server, which } => {
            let remote = which.connect().await?;
            let status = remote.status().await.context("ask the cluster")?;
            let server = status.join_urls.first().unwrap_or(&status.api_url);
            let role = if is_server { TokenRole::Server } else { TokenRole::Node };
            let token = remote.create_token(role, ttl).await.context("make a token")?;
            say!("coracle {} --join {server} --token {token}", role.word())?;
            if server.contains("//127.") || server.contains("//[::1]") {
                tell!(
                    "note: the API listens on this machine only; for others, start it with --bind ADDRESS of this machine, or \
                     0.0.0.0"
                );
            }
            if let [_, others @ ..] = status.join_urls.as_slice()
                && !others.is_empty()
            {
                tell!("note: the API listens also at {}", others.join(", "));
            }
        }
        Command::List { which } => {
            let tokens = which.connect().await?.tokens().await.context("list tokens")?;
            say!("{:<10}  {:<6}  ENDS", "ID", "FOR")?;
            for token in tokens {
                say!(
                    "{:<10}  {:<6}  {}{}",
                    token.id,
                    token.role,
                    token.ends,
                    if token.is_over { " (over)" } else { "" }
                )?;
            }
        }
        Command::Delete { id, which } => {
            if !which.connect().await?.delete_token(&id).await.context("delete the token")? {
                bail!("there is no token {id}: `coracle token list` shows them");
            }
            say!("token {id} deleted")?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_a_unit_and_an_end() {
        for (text, seconds) in [
            ("30m", Some(1800)),
            ("2h", Some(7200)),
            ("7d", Some(604_800)),
            ("1s", Some(1)),
            ("8d", None),
            ("0s", None),
            ("1", None),
            ("", None),
            ("h", None),
            ("5µ", None),
            ("99999999999999999999d", None),
            ("213503982334602d", None),
        ] {
            assert_eq!(time(text).ok().map(|time| time.as_secs()), seconds, "{text}");
        }
    }
}
