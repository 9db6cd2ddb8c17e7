//! CEL, the language of expressions in schemas and policies: parsed, checked and compiled once, evaluated within a budget.
//!
//! ```text
//! text ─► parse ─► program (types are checked, names become places) ─► eval (values, the library, costs)
//!                                  ▲
//!                  types, signatures: what stands for what
//! ```
//! Who asks says which names there are: rules of schemas ([`crate::custom`]) `self` and `oldSelf`, [`admission`] the objects of
//! a request, `devices` one device. An evaluation ends when it has cost what it may, whatever it says.

pub mod admission;
mod authority;
pub(crate) mod devices;
mod eval;
mod library;
mod parse;
mod program;
mod signatures;
#[cfg(test)]
mod tests;
mod types;
mod value;

pub use authority::{Asked, Authorizer, Decision};
pub(crate) use eval::{Run, Stop};
pub(crate) use parse::{Fault, parse};
pub(crate) use program::{Env, Expr, Made, make};
pub(crate) use types::{Ty, is_name};
pub(crate) use value::{Shape, Val};

use crate::custom::pattern::STATES_ALL_MAX;

/// What one expression may cost once (Kubernetes').
pub(crate) const EXPRESSION_BUDGET: usize = 1_000_000;
/// Most bytes that the expressions of one object have together.
const SOURCE_MAX: usize = 1 << 20;
/// Most bytes of all faults that are told of an expression: each shows its line.
const TOLD_BYTES_MAX: usize = 64 << 10;

/// Faults of an expression as Kubernetes shows them.
pub(crate) fn show(faults: &[Fault], source: &str) -> String {
    let mut shown = String::new();
    for fault in faults {
        if !shown.is_empty() {
            if shown.len() > TOLD_BYTES_MAX {
                shown.push_str("\n…");
                break;
            }
            shown.push('\n');
        }
        shown.push_str(&fault.show(source));
    }
    shown
}

/// What compiling the expressions of one object may still take. All of them share one: each alone is small.
pub(crate) struct Budget {
    /// Bytes of what is written.
    source: usize,
    /// States of what they match with.
    states: usize,
}

impl Default for Budget {
    fn default() -> Budget {
        Budget { source: SOURCE_MAX, states: STATES_ALL_MAX }
    }
}

/// Compiles an expression, within what those before it have left.
pub(crate) fn compile<'s>(source: &str, env: &Env<'s>, budget: &mut Budget) -> Result<Made<'s>, String> {
    let too_long = || format!("the expressions have more than {SOURCE_MAX} bytes together");
    budget.source = budget.source.checked_sub(source.len()).ok_or_else(too_long)?;
    let made = parse(source).map_err(|fault| vec![fault]).and_then(|node| make(&node, env, &mut budget.states));
    made.map_err(|faults| show(&faults, source))
}
