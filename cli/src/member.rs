//! `coracle member`: the servers of a cluster.

use anyhow::{Context as _, bail};
use clap::Subcommand;
use coracle_sdk::Member;

use crate::cluster::Which;
use crate::output::say;

/// List and remove the servers of a cluster
#[derive(clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// List the servers
    List {
        #[command(flatten)]
        which: Which,
    },
    /// Remove a server for good
    ///
    /// One that runs ends. It is refused when the servers that are left could not go on. A dead server is replaced by removing it
    /// and letting another join; one that was removed may join again with an empty data directory and a new token.
    Remove {
        /// Its number or name, as `list` shows them
        #[arg(value_name = "NUMBER|NAME")]
        member: String,
        #[command(flatten)]
        which: Which,
    },
}

/// Runs the command.
pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    match arguments.command {
        Command::List { which } => print(&which.connect().await?.members().await.context("list the servers")?)?,
        Command::Remove { member, which } => {
            let remote = which.connect().await?;
            let number = find(&remote.members().await.context("list the servers")?, &member)?;
            remote.remove_member(number).await.context("remove the server")?;
            say!("server {number} removed")?;
        }
    }
    Ok(())
}

/// The one whose number or name this is.
fn find(members: &[Member], word: &str) -> anyhow::Result<u64> {
    let named: Vec<u64> = members.iter().filter(|member| member.name == word).map(|member| member.member).collect();
    if let Ok(number) = word.parse::<u64>() {
        // Whether there is one is the leader's to say.
        match named.iter().find(|named| **named != number) {
            None => return Ok(number),
            Some(_) if !members.iter().any(|member| member.member == number) => {}
            Some(named) => {
                bail!("{word} is the number of one server and the name of server {named}: say {named} for that one")
            }
        }
    }
    match named.as_slice() {
        [number] => Ok(*number),
        [] => bail!("there is no server {word}: `coracle member list` shows them"),
        several => bail!("several servers are called {word}: say which number, of {several:?}"),
    }
}

/// A line for each.
pub fn print(members: &[Member]) -> anyhow::Result<()> {
    say!("{:<6}  {:<20}  {:<8}  {:<7}  {:<22}  {:<22}  LAG", "NUMBER", "NAME", "ROLE", "FORMATS", "ADDRESS", "API")?;
    let last = members.iter().filter_map(|member| member.matched).max();
    for member in members {
        let role = if member.leads { "leader" } else { &member.role };
        let lag =
            last.zip(member.matched).map_or_else(|| "-".to_owned(), |(last, matched)| (last - matched).to_string());
        let [name, address, api] = [&member.name, &member.address, &member.api].map(|text| or_dash(text));
        let formats = match (member.formats.oldest, member.formats.newest) {
            (oldest, newest) if oldest == newest => newest.to_string(),
            (oldest, newest) => format!("{oldest}-{newest}"),
        };
        say!("{:<6}  {name:<20}  {role:<8}  {formats:<7}  {address:<22}  {api:<22}  {lag}", member.member)?;
    }
    Ok(())
}

fn or_dash(text: &str) -> &str {
    if text.is_empty() { "-" } else { text }
}
