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

/// What one expression may cost once (Kubernetes').
pub(crate) const EXPRESSION_BUDGET: usize = 1_000_000;
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

/// Compiles an expression.
pub(crate) fn compile<'s>(source: &str, env: &Env<'s>, states: &mut usize) -> Result<Made<'s>, String> {
    let made = parse(source).map_err(|fault| vec![fault]).and_then(|node| make(&node, env, states));
    made.map_err(|faults| show(&faults, source))
}
