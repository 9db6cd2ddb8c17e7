//! How guests end.

use wasmtime::Trap;
use wasmtime_wasi::I32Exit;

use crate::error::{cut_to, line};

/// How a guest ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    /// By itself, with this code. WASI 0.2 guests can mostly say 0 and 1 only.
    Code(i32),
    /// It did what no guest may do, or panicked.
    Trap(String),
    /// It wanted more memory than its limit.
    OutOfMemory,
    /// It used up its fuel.
    FuelExhausted,
    /// It was asked to end.
    Stopped,
    /// It was ended at once.
    Killed,
}

impl Exit {
    /// The code as shells know them: 134 for a trap (SIGABRT), 137 for out of memory and kill (SIGKILL), 143 for a
    /// stop (SIGTERM), 152 for spent fuel (SIGXCPU).
    pub fn code(&self) -> i32 {
        match self {
            Exit::Code(code) => *code,
            Exit::Trap(_) => 134,
            Exit::OutOfMemory | Exit::Killed => 137,
            Exit::FuelExhausted => 152,
            Exit::Stopped => 143,
        }
    }

    /// As Kubernetes names it.
    pub fn reason(&self) -> &'static str {
        match self {
            Exit::Code(0) => "Completed",
            Exit::OutOfMemory => "OOMKilled",
            _ => "Error",
        }
    }

    /// For people; empty when the code says it all.
    pub fn message(&self) -> String {
        match self {
            Exit::Code(_) | Exit::Stopped | Exit::Killed => String::new(),
            Exit::Trap(message) => message.clone(),
            Exit::OutOfMemory => "the memory limit was reached".to_owned(),
            Exit::FuelExhausted => "the fuel was used up".to_owned(),
        }
    }

    /// From what wasmtime says.
    pub(crate) fn of(error: &wasmtime::Error) -> Exit {
        if let Some(exit) = error.downcast_ref::<I32Exit>() {
            return Exit::Code(exit.0);
        }
        if error.is::<OverLimit>() {
            return Exit::OutOfMemory;
        }
        match error.downcast_ref::<Trap>() {
            Some(Trap::OutOfFuel) => Exit::FuelExhausted,
            _ => Exit::Trap(line(error)),
        }
    }
}

/// Bytes of a backtrace: the names of functions are the component's.
const BACKTRACE_BYTES_MAX: usize = 16 << 10;

/// Where in the guest that was, in lines that each end; empty when it is not known.
pub(crate) fn backtrace(error: &wasmtime::Error) -> String {
    let backtrace = error.downcast_ref::<wasmtime::WasmBacktrace>();
    let text = |backtrace: &wasmtime::WasmBacktrace| {
        format!("{}\n", cut_to(backtrace.to_string().trim_end().to_owned(), BACKTRACE_BYTES_MAX))
    };
    backtrace.map(text).unwrap_or_default()
}

/// Why there is no more memory: travels through wasmtime as the trap's cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum OverLimit {
    /// The container has what it may have.
    #[error("the memory limit was reached")]
    Container,
    /// All containers together have what the node has.
    #[error("the node's memory for guests is used up")]
    Node,
}
