//! What clients were promised. A write that was acknowledged is there, one that was refused never was, and one without an answer
//! may be there or not, now or later.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash as _, Hasher};

use parking_lot::Mutex;

/// A register with one writer, and what that was told.
#[derive(Default, Hash)]
struct Register {
    acknowledged: u64,
    seen: u64,
    tried: u64,
    refused: BTreeSet<u64>,
}

/// All promises.
#[derive(Default)]
pub struct Promises {
    registers: Mutex<BTreeMap<String, Register>>,
    counted: Mutex<(u64, u64)>,
    /// The newest revision that anybody was told of an answer.
    revision: Mutex<u64>,
}

impl Promises {
    /// A write of a register begins.
    pub fn tries(&self, name: &str, value: u64) {
        self.registers.lock().entry(name.into()).or_default().tried = value;
    }

    /// It was acknowledged.
    pub fn acknowledged(&self, name: &str, value: u64) {
        self.registers.lock().entry(name.into()).or_default().acknowledged = value;
    }

    /// It was refused.
    pub fn refused(&self, name: &str, value: u64) {
        self.registers.lock().entry(name.into()).or_default().refused.insert(value);
    }

    /// The least that a read which begins now may find.
    pub fn least(&self, name: &str) -> u64 {
        self.registers.lock().get(name).map_or(0, |register| register.acknowledged.max(register.seen))
    }

    /// Judges what a read found that began when `least` was the least.
    pub fn read(&self, name: &str, least: u64, found: u64) -> Result<(), String> {
        let mut registers = self.registers.lock();
        let register = registers.entry(name.into()).or_default();
        if found < least || found > register.tried {
            return Err(format!("register {name} reads {found}, not {least} to {}", register.tried));
        }
        if register.refused.contains(&found) {
            return Err(format!("register {name} reads {found}, which was refused"));
        }
        register.seen = register.seen.max(found);
        Ok(())
    }

    /// Adds all of it to a fingerprint.
    pub fn print(&self, into: &mut impl Hasher) {
        (&*self.registers.lock(), &*self.counted.lock(), &*self.revision.lock()).hash(into);
    }

    /// A step of the counter was acknowledged.
    pub fn counted(&self) {
        self.counted.lock().0 += 1;
    }

    /// A step of the counter may have been.
    pub fn perhaps_counted(&self) {
        self.counted.lock().1 += 1;
    }

    /// Judges the counter.
    pub fn count(&self, found: u64) -> Result<(), String> {
        let (least, more) = *self.counted.lock();
        match found {
            found if (least..=least + more).contains(&found) => Ok(()),
            _ => Err(format!("the counter says {found}, not {least} to {}", least + more)),
        }
    }

    /// The least revision that a read which begins now may have.
    pub fn revision(&self) -> u64 {
        *self.revision.lock()
    }

    /// Somebody was told that something is so at `revision`.
    pub fn told(&self, revision: u64) {
        let mut newest = self.revision.lock();
        *newest = (*newest).max(revision);
    }
}
