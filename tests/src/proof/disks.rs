//! The disks of a proof: each server has one of its own, which can be full, and can stand still.
//!
//! As root, and where there are loop devices, it is an ext4 in a file: what is written waits for a journal, and `fsfreeze` has it wait
//! for as long as it is asked to. Otherwise it is a tmpfs, which can only be full. They are mounted in the program's own namespace, and go
//! with it; one that stands still when the program is killed is made to go on by what tidies up after it (`network`).

use std::path::{Path, PathBuf};
use std::process::Command;

use super::SERVERS;
use super::servers::NAMES;
use crate::{output, run};

/// Bytes of a disk. A file system in a file takes only what is written to it.
const BYTES: u64 = 1 << 30;
/// The smallest piece that a full disk is filled with.
const BLOCK: u64 = 4096;

/// What the disks are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    /// ext4 in a file.
    Loop,
    /// tmpfs.
    Memory,
}

/// The disks; they are unmounted with this.
pub struct Disks {
    dir: PathBuf,
    kind: Kind,
}

impl Disks {
    /// Makes them below `dir`.
    pub fn make(dir: &Path) -> Disks {
        let mut disks = Disks { dir: dir.to_owned(), kind: Kind::Loop };
        for server in 0..SERVERS {
            std::fs::create_dir(disks.mount(server)).expect("make a directory");
        }
        if (0..SERVERS).all(|server| disks.loop_mounted(server)) {
            return disks;
        }
        disks.kind = Kind::Memory;
        for server in 0..SERVERS {
            // Some could be made.
            let _ = output(Command::new("umount").arg(disks.mount(server)));
            let size = format!("size={BYTES}");
            run(Command::new("mount").args(["-t", "tmpfs", "-o", &size, "disk"]).arg(disks.mount(server)));
        }
        disks
    }

    /// Whether the disk of `server` is an ext4 in a file now, which can stand still.
    fn loop_mounted(&self, server: usize) -> bool {
        let (image, mount) = (self.dir.join(format!("{}.ext4", NAMES[server])), self.mount(server));
        let sparse = std::fs::File::create(&image).and_then(|file| file.set_len(BYTES));
        sparse.expect("make a file for a disk");
        let done = |command: &mut Command| {
            command.stdin(std::process::Stdio::null());
            command.output().is_ok_and(|output| output.status.success())
        };
        let is_mounted = done(Command::new("mkfs.ext4").args(["-q", "-m", "0"]).arg(&image))
            && done(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&mount));
        if is_mounted && done(Command::new("fsfreeze").arg("--freeze").arg(&mount)) {
            run(Command::new("fsfreeze").arg("--unfreeze").arg(&mount));
            return true;
        }
        if is_mounted {
            run(Command::new("umount").arg(&mount));
        }
        let _ = std::fs::remove_file(image);
        false
    }

    /// Where the disk of a server is.
    pub fn mount(&self, server: usize) -> PathBuf {
        self.dir.join(NAMES[server])
    }

    /// Why a disk cannot stand still, where it cannot.
    pub fn cannot_stall(&self) -> Option<&'static str> {
        let why = "a disk that stands still takes root, loop devices, mkfs.ext4 and fsfreeze";
        (self.kind == Kind::Memory).then_some(why)
    }

    /// Has whatever writes to the disk of `server` wait.
    pub fn stall(&self, server: usize) {
        run(Command::new("fsfreeze").arg("--freeze").arg(self.mount(server)));
    }

    /// Has it go on; nothing where it does not wait.
    pub fn go_on(&self, server: usize) {
        let _ = output(Command::new("fsfreeze").arg("--unfreeze").arg(self.mount(server)));
    }

    /// Leaves no room on the disk of `server`.
    pub fn fill(&self, server: usize) {
        match self.kind {
            Kind::Loop => {
                let filler = self.filler(server);
                let (mut at, mut piece) = (0, self.df(server, "avail") / BLOCK * BLOCK);
                while piece >= BLOCK {
                    let mut fill = Command::new("fallocate");
                    fill.args(["--offset", &at.to_string(), "--length", &piece.to_string()]).arg(&filler);
                    match output(&mut fill).status.success() {
                        true => at += piece,
                        false => piece = piece / 2 / BLOCK * BLOCK,
                    }
                }
            }
            // Somebody may write meanwhile: it cannot be smaller than what is in it.
            Kind::Memory => while !self.resized(server, self.df(server, "used")) {},
        }
    }

    /// Gives it back.
    pub fn free(&self, server: usize) {
        match self.kind {
            Kind::Loop => std::fs::remove_file(self.filler(server)).expect("it was filled"),
            Kind::Memory => assert!(self.resized(server, BYTES), "a larger disk is no problem"),
        }
    }

    fn filler(&self, server: usize) -> PathBuf {
        self.mount(server).join("filler")
    }

    /// Bytes that `df` says of the disk of `server`.
    fn df(&self, server: usize, what: &str) -> u64 {
        let mut df = Command::new("df");
        let said = run(df.args(["--block-size=1", &format!("--output={what}")]).arg(self.mount(server)));
        said.lines().nth(1).and_then(|line| line.trim().parse().ok()).expect("df says a number")
    }

    fn resized(&self, server: usize, bytes: u64) -> bool {
        let size = format!("remount,size={bytes}");
        output(Command::new("mount").args(["-o", &size]).arg(self.mount(server))).status.success()
    }

    /// Copies what is on them beside them, for a person to look at when they are gone.
    pub fn keep(&self) {
        for (server, name) in NAMES.iter().enumerate().take(SERVERS) {
            let to = self.dir.join(format!("{name}.data"));
            let copied = output(Command::new("cp").arg("-a").arg(self.mount(server)).arg(to));
            if !copied.status.success() {
                eprintln!("{}", String::from_utf8_lossy(&copied.stderr));
            }
        }
    }
}

impl Drop for Disks {
    fn drop(&mut self) {
        for server in 0..SERVERS {
            if self.kind == Kind::Loop {
                self.go_on(server);
            }
            let _ = output(Command::new("umount").arg("--lazy").arg(self.mount(server)));
        }
    }
}
