//! Wrong bits, missing and cut files: what was written is there, or the start refuses, says why, and changes nothing.

use std::path::Path;

use rand::Rng;

use super::histories::{Contents, Play, Store};
use super::{SimDisk, seeds};

/// A directory with some history in it, everything synced, and what it says.
fn written(seed: u64) -> (Play, Contents) {
    let mut play = Play::begin(seed);
    for _ in 0..60 {
        play.step();
    }
    play.store.log.settle().unwrap();
    let contents = play.contents(&play.store);
    play.store.log.close();
    play.store.machine.close();
    (play, contents)
}

/// Opens what is on `disk`: either it is what was written, or it is refused, twice alike, and left as it is.
fn open_or_refuse(disk: &SimDisk, play: &Play, contents: &Contents, what: &str) -> Result<Option<String>, String> {
    let image = disk.image();
    match Store::open(disk) {
        Ok(store) => {
            let found = play.contents(&store);
            store.close();
            // A purge is not waited for; one that was lost has the entries again.
            let known: Vec<_> = found.2.iter().filter(|(id, _)| Some(*id) > contents.1).cloned().collect();
            if (&found.0, &known, &found.3) == (&contents.0, &contents.2, &contents.3) {
                return Ok(None);
            }
            Err(format!("{what}: opened, with other contents"))
        }
        Err(why) => {
            if disk.image() != image {
                return Err(format!("{what}: refused ({why}), and changed"));
            }
            match Store::open(disk) {
                Err(again) if again == why => Ok(Some(why)),
                Err(again) => Err(format!("{what}: first {why}, then {again}")),
                Ok(_) => Err(format!("{what}: first {why}, then opened")),
            }
        }
    }
}

#[test]
fn a_wrong_bit_is_refused_or_without_effect() {
    seeds(24, "simulation::damage", |seed| {
        let (mut play, contents) = written(seed);
        let (disk, image) = (play.disk.clone(), play.disk.image());
        let mut refused = 0;
        for _ in 0..60 {
            let at = play.random.random_range(0..image.len());
            let (path, content) = image.iter().nth(at).unwrap();
            // Most of a file may be zeros that mean nothing.
            let used: Vec<usize> = (0..content.len()).filter(|at| content[*at] != 0).collect();
            let byte = match used.len() {
                0 => continue,
                count => used[play.random.random_range(0..count)],
            };
            let mut wrong = image.clone();
            wrong.get_mut(path).unwrap()[byte] ^= 1 << play.random.random_range(0..8);
            disk.restore(&wrong);
            let what = format!("seed {seed}, byte {byte} of {}", path.display());
            refused += usize::from(open_or_refuse(&disk, &play, &contents, &what)?.is_some());
        }
        if refused == 0 { Err(format!("seed {seed}: none of the wrong bits was refused")) } else { Ok(()) }
    });
}

#[test]
fn a_missing_or_cut_file_is_refused() {
    seeds(12, "simulation::damage", |seed| {
        let (mut play, contents) = written(seed);
        let (disk, image) = (play.disk.clone(), play.disk.image());
        for (path, content) in &image {
            let harmless = path.ends_with("spare") || path.ends_with("spare.part");
            let mut wrong = image.clone();
            wrong.remove(path);
            disk.restore(&wrong);
            let what = format!("seed {seed}, without {}", path.display());
            let why = open_or_refuse(&disk, &play, &contents, &what)?;
            let named = why.as_ref().is_some_and(|why| why.contains("missing") && why.contains("Restore"));
            if named == harmless {
                return Err(format!("{what}: {why:?}"));
            }
            let mut wrong = image.clone();
            let length = play.random.random_range(0..content.len());
            wrong.get_mut(path).unwrap().truncate(length);
            disk.restore(&wrong);
            let what = format!("seed {seed}, {} bytes of {}", length, path.display());
            open_or_refuse(&disk, &play, &contents, &what)?;
        }
        let mut wrong = image.clone();
        wrong.retain(|path, _| path.parent() != Some(Path::new("/data/log")));
        disk.restore(&wrong);
        let why = open_or_refuse(&disk, &play, &contents, "without the log")?;
        why.filter(|why| why.contains("/data/log")).map(drop).ok_or_else(|| "the log's loss is not named".into())
    });
}
