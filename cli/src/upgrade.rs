//! `coracle upgrade`: from one version to another, while the cluster serves.

use anyhow::{Context as _, bail};
use coracle_sdk::{How, Next, Part, Told};

use crate::cluster::Which;
use crate::output::{Step, say, tell};

/// Have all servers and nodes begin anew, one after the other, with the program that is on their machines now
///
/// Put the new executable in the place of the old one on every machine first (by renaming it there, as installers do: what runs goes on
/// with the old one), then run this once, anywhere. Each server ends in order and begins anew as the same process, so that its
/// supervisor has nothing to do; the one that leads hands over and comes last. The next one is asked when a server has all that
/// the others have, and when a node is Ready and its pods are ready again. Clients' requests are answered meanwhile, and pods on other
/// nodes serve. Before anything ends, every new program is asked who it is, and whether it knows the format of the log.
#[derive(clap::Args)]
pub struct Arguments {
    /// Show what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Those, too, that run what is on their machine
    #[arg(long)]
    all: bool,
    /// Ask nobody: say who is next, and wait until somebody has started it again, as where a program comes with its container
    #[arg(long)]
    by_hand: bool,
    #[command(flatten)]
    which: Which,
}

/// Runs the command.
pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let remote = arguments.which.connect().await?;
    let status = remote.status().await.context("ask the cluster")?;
    if status.alone_milliseconds.is_some() {
        bail!("{}", status.in_words().join("; "));
    }
    let parts = remote.parts().await.context("ask the servers and nodes what they run")?;
    print(&parts)?;
    let how = if arguments.by_hand { How::ByHand } else { How::Asked };
    let (chosen, notes) = choose(parts, status.format, how, arguments.all)?;
    notes.iter().for_each(|note| tell!("note: {note}"));
    if chosen.is_empty() {
        tell!("nothing to do: all run the program that is on their machine (--all has them begin anew all the same)");
        return Ok(());
    }
    if arguments.dry_run {
        return Ok(());
    }
    for part in &chosen {
        let title = part.title();
        if how == How::ByHand {
            let step = Step::begin(format!("wait for the other servers before {title}"));
            remote.others_answer(part, &mut |told| tell(&step, &title, told)).await?;
            step.done();
        }
        let step = Step::begin(match how {
            How::Asked => title.clone(),
            How::ByHand => format!("start {title} again with the new version; waiting"),
        });
        let running = remote.begin_anew(part, how, &mut |told| tell(&step, &title, told)).await?;
        step.done();
        say!("{title} runs {}", running.version)?;
    }
    Ok(())
}

fn tell(step: &Step, title: &str, told: Told<'_>) {
    match told {
        Told::Next => step.note(&format!("next: start {title} again with the new version")),
        Told::WaitsFor(why) => step.waits_for(why),
    }
}

/// A line for each: what it runs, and what it would.
fn print(parts: &[Part]) -> anyhow::Result<()> {
    say!("{:<40}  {:<12}  ON ITS MACHINE", "PROCESS", "RUNS")?;
    for part in parts {
        let title = part.title();
        let (runs, next) = match &part.program {
            Err(_) => ("?", "?".to_owned()),
            Ok(running) => (
                running.version.as_str(),
                match &running.next {
                    None => "the same".to_owned(),
                    Some(Next::Fit(version)) => format!("{} at {}", version.version, running.path.display()),
                    Some(Next::Unfit(why)) => why.clone(),
                },
            ),
        };
        say!("{title:<40}  {runs:<12}  {next}")?;
    }
    Ok(())
}

/// Who begins anew, and what else is to be said; an error when somebody would not come back, or the servers would lose their majority.
fn choose(parts: Vec<Part>, format: u32, how: How, all: bool) -> anyhow::Result<(Vec<Part>, Vec<String>)> {
    let (mut chosen, mut notes) = (Vec::new(), Vec::new());
    for part in parts {
        let title = part.title();
        let running = match &part.program {
            Ok(running) => running,
            Err(why) if part.member.is_some() => {
                bail!("{title} cannot be asked, and all servers have to be there: {why}. Nothing was touched")
            }
            Err(why) => {
                notes.push(format!("{title} is left as it is: {why}"));
                continue;
            }
        };
        if how == How::ByHand {
            chosen.push(part);
            continue;
        }
        let path = running.path.display();
        match &running.next {
            Some(Next::Unfit(why)) => bail!("{title} would not start again: {why}. Nothing was touched"),
            Some(Next::Fit(next))
                if part.member.is_some() && !(next.formats.oldest..=next.formats.newest).contains(&format) =>
            {
                bail!(
                    "{title} would not start again: the log is in format {format}, and version {} at {path} knows {}. Nothing was touched",
                    next.version,
                    next.formats
                )
            }
            Some(Next::Fit(_)) => chosen.push(part),
            None if all => chosen.push(part),
            None => (),
        }
    }
    Ok((chosen, notes))
}

#[cfg(test)]
mod tests {
    use coracle_sdk::{Formats, Running, Version};

    use super::*;

    fn part(name: &str, member: Option<u64>, next: Option<Next>) -> Part {
        let running = Running { version: "1".into(), process: name.into(), path: "/bin/coracle".into(), next };
        Part {
            name: name.into(),
            member,
            node: member.is_none().then(|| name.to_owned()),
            leads: false,
            program: Ok(running),
        }
    }

    #[test]
    fn nobody_is_touched_when_one_would_not_come_back() {
        let fit =
            |oldest, newest| Some(Next::Fit(Version { version: "2".into(), formats: Formats { oldest, newest } }));
        let names = |found: anyhow::Result<(Vec<Part>, Vec<String>)>| {
            found.map(|(chosen, notes)| (chosen.into_iter().map(|part| part.name).collect::<Vec<_>>(), notes.len()))
        };
        let new = || part("new", Some(1), fit(2, 3));
        let same = || part("same", Some(2), None);
        let chosen = names(choose(vec![new(), same()], 2, How::Asked, false)).unwrap();
        assert_eq!(chosen, (vec!["new".to_owned()], 0));
        let chosen = names(choose(vec![new(), same()], 2, How::Asked, true)).unwrap();
        assert_eq!(chosen.0, ["new", "same"]);
        let unfit = || part("broken", Some(3), Some(Next::Unfit("it is no program".into())));
        let silent = |member| Part { program: Err("it is away".into()), ..part("silent", member, None) };
        for (other, why) in [
            (unfit(), "server broken (3) would not start again: it is no program"),
            (
                part("old", Some(3), fit(3, 4)),
                "the log is in format 2, and version 2 at /bin/coracle knows formats 3 to 4",
            ),
            (silent(Some(3)), "server silent (3) cannot be asked"),
        ] {
            let error = choose(vec![new(), other], 2, How::Asked, false).unwrap_err().to_string();
            assert!(error.contains(why) && error.contains("Nothing was touched"), "{error}");
        }
        // A node keeps no log, and one that is away is left.
        let node = part("old", None, fit(3, 4));
        assert_eq!(names(choose(vec![node, silent(None)], 2, How::Asked, false)).unwrap(), (vec!["old".to_owned()], 1));
        // What is on the machine is whoever starts it to say.
        assert_eq!(names(choose(vec![unfit(), same()], 2, How::ByHand, false)).unwrap().0, ["broken", "same"]);
    }
}
