//! Expressions that select devices (`resource.k8s.io`): each is asked about one device.

use super::types::{Decl, Fixed, Part};
use super::{Budget, Env, Ty};

static DEVICE: Fixed = Fixed {
    name: "kubernetes.DRADevice",
    fields: &[
        ("driver", Part::Text),
        ("attributes", Part::AnyByDomain),
        ("capacity", Part::QuantityByDomain),
        ("allowMultipleAllocations", Part::Bool),
    ],
};

/// What is wrong with an expression, in Kubernetes' words. All of an object have one budget.
pub(crate) fn fault(source: &str, budget: &mut Budget) -> Option<String> {
    let names = vec![("device".to_owned(), Ty::Object(Decl::Fixed(&DEVICE)))];
    let env = Env { names, patches: false, binds: true };
    match super::compile(source, &env, budget) {
        Err(told) => Some(format!("compilation failed: {told}")),
        Ok(made) if matches!(made.ty, Ty::Bool | Ty::Dyn) => None,
        Ok(made) => Some(format!("must evaluate to bool or the unknown type, not {}", made.ty.output())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(source: &str) -> Option<String> {
        super::fault(source, &mut Budget::default())
    }

    #[test]
    fn a_selector_speaks_of_a_device_and_says_yes_or_no() {
        for well in [
            "device.driver == 'gpu.example.com'",
            "device.attributes['a'].b",
            "device.attributes['a'].b == 'x' && device.allowMultipleAllocations",
            "device.capacity['a'].b.compareTo(quantity('1')) >= 0",
            "semver('1.2.3').isLessThan(device.attributes['a'].v)",
            "cel.bind(x, device.attributes['a'], x.b && x.c)",
        ] {
            assert_eq!(fault(well), None, "{well}");
        }
        let told = |source: &str, at: usize, words: &str| {
            format!("compilation failed: ERROR: <input>:1:{at}: {words}\n | {source}\n | {}^", ".".repeat(at - 1))
        };
        for (source, at, words) in [
            ("device.foo == 1", 7, "undefined field 'foo'"),
            ("authorizer", 1, "undeclared reference to 'authorizer' (in container '')"),
            ("cel.bind(1, 1, x)", 10, "cel.bind() variable names must be simple identifiers"),
            ("cel.bind(x, 1, y)", 16, "undeclared reference to 'y' (in container '')"),
            ("Not_valid!/", 10, "Syntax error: mismatched input '!' expecting <EOF>"),
            ("device.driver == \"a\"x", 21, "Syntax error: extraneous input 'x' expecting <EOF>"),
        ] {
            assert_eq!(fault(source), Some(told(source, at, words)), "{source}");
        }
        let empty = fault("").expect("nothing is no expression");
        assert!(empty.starts_with("compilation failed: ERROR: <input>:1:0: Syntax error: mismatched input '<EOF>'"));
        assert!(!empty.contains('\n'), "{empty}");
        assert_eq!(fault("1").as_deref(), Some("must evaluate to bool or the unknown type, not int"));
        let device = Some("must evaluate to bool or the unknown type, not kubernetes.DRADevice");
        assert_eq!(fault("device").as_deref(), device);
    }
}
