//! Makes a tree into a program: names become places, macros loops, and types are checked as cel-go's checker does.

use std::sync::Arc;

use super::eval::LEVELS_MAX;
use super::parse::{Fault, Is, Node, Operator};
use super::signatures::{self, ESCAPE_KEY, Overload};
use super::types::{Bound, Decl, Ty, Variables};
use super::value::{duration, timestamp};
use crate::custom::pattern::{Pattern, Translation};

/// States that each expression that is matched with counts as, beside those that it has: it is some ten KiB, compiled.
const PATTERN_STATES: usize = 100;
/// Bytes that a node and a state take, about, compiled.
const NODE_BYTES: usize = 100;
const STATE_BYTES: usize = 200;

/// Most faults that are told of one expression (cel-go's).
const FAULTS_MAX: usize = 100;

#[derive(Debug)]
pub(crate) enum Expr {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    Text(String),
    Bytes(Vec<u8>),
    Type(&'static str),
    Slot(usize),
    /// The value of an expression that was declared before.
    Variable(usize),
    /// Whether it has one: it fails where that does.
    Declared(usize),
    Select(Box<Expr>, String, bool),
    Has(Box<Expr>, String),
    Index(Box<Expr>, Box<Expr>, bool),
    /// Of the library; one that is called on something has that as its first argument.
    Call(&'static str, Vec<Expr>),
    /// `matches` with an expression that is known.
    Matches(Box<Expr>, Pattern),
    List(Vec<(Expr, bool)>),
    Map(Vec<(Expr, Expr, bool)>),
    /// `Object.spec{…}` or `JSONPatch{…}`.
    Struct(Arc<str>, Vec<(String, Expr, bool)>),
    All(Vec<Expr>),
    Any(Vec<Expr>),
    Not(Box<Expr>),
    Negative(Box<Expr>),
    Either(Box<Expr>, Box<Expr>, Box<Expr>),
    Binary(Operator, Box<Expr>, Box<Expr>),
    Loop(Box<Loop>),
    /// `optMap` and `optFlatMap`.
    Chain {
        of: Box<Expr>,
        then: Box<Expr>,
        flat: bool,
    },
    /// `cel.bind`: what the second says of the first.
    Bind(Box<Expr>, Box<Expr>),
}

#[derive(Debug)]
pub(crate) struct Loop {
    pub what: What,
    pub over: Expr,
    /// Whether there is a variable for the place, or the key, as well as one for the value.
    pub two: bool,
    pub filter: Option<Expr>,
    pub then: Expr,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum What {
    All,
    Exists,
    ExistsOne,
    /// A list of what `then` gives.
    Map,
    /// A list of the items.
    Filter,
    /// A list of the items, in the order of what `then` gives.
    Sort,
    /// A map of the keys to what `then` gives.
    Fields,
    /// A map of the entries that `then` gives.
    Entries,
}

/// What expressions may name.
#[derive(Clone)]
pub(crate) struct Env<'s> {
    /// By their places.
    pub names: Vec<(String, Ty<'s>)>,
    /// Whether it may make patches: `Object{}`, `JSONPatch{}`.
    pub patches: bool,
    /// Whether it may name a part of itself: `cel.bind(name, part, whole)`.
    pub binds: bool,
}

/// A program, and what is known of it.
pub(crate) struct Made<'s> {
    pub expr: Expr,
    pub ty: Ty<'s>,
    /// The places that it names, as bits.
    pub uses: u64,
    /// How many levels its evaluation takes, with the variables that it asks for.
    pub depth: usize,
    /// Bytes that it holds, about.
    pub weight: usize,
}

/// Makes a program of a tree. Of the states of expressions that it matches with it takes its part.
pub(crate) fn make<'s>(node: &Node, env: &Env<'s>, states: &mut usize) -> Result<Made<'s>, Vec<Fault>> {
    let mut maker = Maker {
        names: env.names.clone(),
        slots: env.names.len(),
        patches: env.patches,
        binds: env.binds,
        bound: Bound::new(node.count),
        uses: 0,
        level: 0,
        reach: 0,
        states: *states,
        faults: Vec::new(),
        literals: Vec::new(),
        alike: Vec::new(),
        formats: 0,
    };
    let (expr, ty) = maker.make(node);
    let weight = node.count * NODE_BYTES + (*states - maker.states) * STATE_BYTES;
    *states = maker.states;
    let ty = maker.bound.settled(&ty);
    if maker.faults.is_empty() {
        maker.check_literals();
    }
    if maker.bound.is_spent() {
        maker.faults = vec![Fault::new(0, "the types of the expression are too large together")];
    }
    if maker.faults.is_empty() {
        return Ok(Made { expr, ty, uses: maker.uses, depth: maker.reach, weight });
    }
    maker.faults.sort_by_key(|fault| fault.at);
    Err(maker.faults)
}

struct Maker<'s> {
    names: Vec<(String, Ty<'s>)>,
    /// How many of them are places that are there from the beginning.
    slots: usize,
    patches: bool,
    binds: bool,
    bound: Bound<'s>,
    uses: u64,
    /// How deep it is, and how deep it was or a variable goes.
    level: usize,
    reach: usize,
    /// Of expressions, how many there may still be.
    states: usize,
    faults: Vec<Fault>,
    /// What is wrong with literals: told of an expression that is right but for them.
    literals: Vec<Fault>,
    /// Parts of one list or map, whose types must be the same: where the second stands.
    alike: Vec<(usize, Ty<'s>, Ty<'s>)>,
    /// Calls of `format` around: their lists may hold anything.
    formats: usize,
}

type Typed<'s> = (Expr, Ty<'s>);

/// The type of the parts of a list or a map.
#[derive(Default)]
struct Joined<'s> {
    first: Option<Ty<'s>>,
    ty: Option<Ty<'s>>,
}

/// A name with dots, when that is all that a node is.
pub(crate) fn dotted(node: &Node) -> Option<String> {
    match &node.is {
        Is::Name(name) => Some(name.clone()),
        Is::Select(of, field, false) => Some(format!("{}.{field}", dotted(of)?)),
        _ => None,
    }
}

fn name_of(operator: Operator) -> &'static str {
    match operator {
        Operator::Less => "_<_",
        Operator::LessEqual => "_<=_",
        Operator::Greater => "_>_",
        Operator::GreaterEqual => "_>=_",
        Operator::Equal => "_==_",
        Operator::NotEqual => "_!=_",
        Operator::In => "@in",
        Operator::Add => "_+_",
        Operator::Subtract => "_-_",
        Operator::Multiply => "_*_",
        Operator::Divide => "_/_",
        Operator::Modulo => "_%_",
    }
}

impl<'s> Maker<'s> {
    fn fault(&mut self, at: usize, message: impl Into<String>) -> Typed<'s> {
        if self.faults.len() < FAULTS_MAX {
            self.faults.push(Fault::new(at, message));
        }
        (Expr::Null, Ty::Error)
    }

    /// Tells what is wrong with literals.
    fn check_literals(&mut self) {
        self.faults.append(&mut self.literals);
        for (at, first, other) in std::mem::take(&mut self.alike) {
            let (first, other) = (self.bound.settled(&first), self.bound.settled(&other));
            if !first.is_exactly(&other) {
                self.mismatch(at, &first, &other);
            }
        }
        self.faults.truncate(FAULTS_MAX);
    }

    fn undeclared(&mut self, at: usize, name: &str) -> Typed<'s> {
        self.fault(at, format!("undeclared reference to '{name}' (in container '')"))
    }

    fn boxed(&mut self, node: &Node) -> (Box<Expr>, Ty<'s>) {
        let (expr, ty) = self.make(node);
        (Box::new(expr), ty)
    }

    fn make(&mut self, node: &Node) -> Typed<'s> {
        self.level += 1;
        self.reach = self.reach.max(self.level);
        let made = self.node(node);
        self.level -= 1;
        made
    }

    /// The value of a variable is evaluated below the place that asks for it.
    fn variable(&mut self, at: usize, variables: &Variables<'s>, name: &str) -> Option<(usize, Ty<'s>)> {
        let (place, declared) = variables.find(name)?;
        let depth = self.level + declared.depth;
        if depth > LEVELS_MAX {
            self.fault(at, "the expression nests too deeply, with the variables that it asks for");
        }
        self.reach = self.reach.max(depth);
        Some((place, declared.ty.clone()))
    }

    fn node(&mut self, node: &Node) -> Typed<'s> {
        match &node.is {
            Is::Null => (Expr::Null, Ty::Null),
            Is::Bool(value) => (Expr::Bool(*value), Ty::Bool),
            Is::Int(value) => (Expr::Int(*value), Ty::Int),
            Is::Uint(value) => (Expr::Uint(*value), Ty::Uint),
            Is::Double(value) => (Expr::Double(*value), Ty::Double),
            Is::Text(value) => (Expr::Text(value.clone()), Ty::Text),
            Is::Bytes(value) => (Expr::Bytes(value.clone()), Ty::Bytes),
            Is::Name(name) => self.name(node.at, name),
            Is::Select(of, field, optional) => self.select(node, of, field, *optional),
            Is::Index(of, index, optional) => {
                let ((of, a), (index, b)) = (self.boxed(of), self.boxed(index));
                let ty = self.resolve(node.at, if *optional { "_[?_]" } else { "_[_]" }, &[a, b], false);
                (Expr::Index(of, index, *optional), ty)
            }
            Is::Call(None, name, arguments) => self.call(node.at, name, arguments),
            Is::Call(Some(on), name, arguments) => self.call_on(node.at, on, name, arguments),
            Is::List(items) => self.list(items),
            Is::Map(fields) => self.map(fields),
            Is::Struct(name, fields) => self.structure(node.at, name, fields),
            Is::All(parts) => (Expr::All(self.bools(parts)), Ty::Bool),
            Is::Any(parts) => (Expr::Any(self.bools(parts)), Ty::Bool),
            Is::Not(of) => {
                let (of, ty) = self.boxed(of);
                let ty = self.resolve(node.at, "!_", &[ty], false);
                (Expr::Not(of), ty)
            }
            Is::Negative(of) => {
                let (of, ty) = self.boxed(of);
                let ty = self.resolve(node.at, "-_", &[ty], false);
                (Expr::Negative(of), ty)
            }
            Is::Either(condition, yes, no) => {
                let ((condition, a), (yes, b), (no, c)) = (self.boxed(condition), self.boxed(yes), self.boxed(no));
                let ty = self.resolve(node.at, "_?_:_", &[a, b, c], false);
                (Expr::Either(condition, yes, no), ty)
            }
            Is::Binary(operator, left, right) => {
                let ((left, a), (right, b)) = (self.boxed(left), self.boxed(right));
                let ty = self.resolve(node.at, name_of(*operator), &[a, b], false);
                (Expr::Binary(*operator, left, right), ty)
            }
        }
    }

    /// What a function gives for what it is given.
    fn resolve(&mut self, at: usize, name: &str, given: &[Ty<'s>], on: bool) -> Ty<'s> {
        let overloads: &'static [Overload] = signatures::find(name).map_or(&[], |(_, all)| all);
        let mut gives: Option<Ty<'s>> = None;
        for overload in overloads.iter().filter(|overload| overload.takes.len() == given.len()) {
            let vars: Vec<Ty<'s>> = (0..overload.vars).map(|_| self.bound.fresh()).collect();
            let takes: Vec<Ty<'s>> = overload.takes.iter().map(|ty| Bound::instantiate(ty, &vars)).collect();
            if !self.bound.assigns_all(given, &takes) {
                continue;
            }
            let ty = self.bound.resolve(&Bound::instantiate(&overload.gives, &vars));
            gives = Some(match gives {
                None => ty,
                Some(before) if matches!(before, Ty::Dyn) || before.is_exactly(&ty) => before,
                Some(_) => Ty::Dyn,
            });
        }
        if let Some(ty) = gives {
            return ty;
        }
        let shown: Vec<String> = given.iter().map(|ty| self.bound.settled(ty).to_string()).collect();
        let signature = match shown.split_first() {
            Some((first, rest)) if on => format!("{first}.({})", rest.join(", ")),
            _ => format!("({})", shown.join(", ")),
        };
        let name = name.trim_start_matches('.');
        self.fault(at, format!("found no matching overload for '{name}' applied to '{signature}'")).1
    }

    fn bools(&mut self, parts: &[Node]) -> Vec<Expr> {
        parts.iter().map(|part| self.bool(part)).collect()
    }

    fn bool(&mut self, node: &Node) -> Expr {
        let (expr, ty) = self.make(node);
        if !self.bound.assigns(&ty, &Ty::Bool) {
            self.mismatch(node.at, &Ty::Bool, &ty);
        }
        expr
    }

    fn mismatch(&mut self, at: usize, expected: &Ty<'s>, found: &Ty<'s>) {
        let (expected, found) = (self.bound.resolve(expected), self.bound.resolve(found));
        self.fault(at, format!("expected type '{expected}' but found '{found}'"));
    }

    fn name(&mut self, at: usize, name: &str) -> Typed<'s> {
        if let Some(slot) = self.names.iter().rposition(|(known, _)| known == name) {
            return self.slot(slot);
        }
        match signatures::type_named(name) {
            Some((name, ty)) => (Expr::Type(name), Ty::of_type(ty)),
            None => self.undeclared(at, name),
        }
    }

    fn slot(&mut self, slot: usize) -> Typed<'s> {
        if slot < self.slots {
            self.uses |= 1_u64.checked_shl(u32::try_from(slot).unwrap_or(u32::MAX)).unwrap_or(0);
        }
        (Expr::Slot(slot), self.names.get(slot).map_or(Ty::Error, |(_, ty)| ty.clone()))
    }

    /// The own name and the type of a field.
    fn field(&mut self, at: usize, of: &Ty<'s>, field: &str) -> (String, Ty<'s>) {
        let own = field.to_owned();
        match self.bound.resolve(of) {
            Ty::Map(of) => (own, of.1.clone()),
            Ty::Object(decl) => match decl.field(field) {
                Some(found) => found,
                None => (own, self.fault(at, format!("undefined field '{field}'")).1),
            },
            ty @ Ty::Var(_) => {
                self.bound.assigns(&Ty::Dyn, &ty);
                (own, Ty::Dyn)
            }
            Ty::Dyn | Ty::Error => (own, Ty::Dyn),
            ty => (own, self.fault(at, format!("type '{ty}' does not support field selection")).1),
        }
    }

    fn select(&mut self, node: &Node, of: &Node, field: &str, optional: bool) -> Typed<'s> {
        // A name with a dot, `authorizer.requestResource`, or that of a type.
        if let Some(whole) = dotted(node) {
            if let Some(slot) = self.names.iter().rposition(|(known, _)| *known == whole) {
                return self.slot(slot);
            }
            let root = whole.split('.').next().unwrap_or_default();
            if !self.names.iter().any(|(known, _)| known == root)
                && let Some((name, ty)) = signatures::type_named(&whole)
            {
                return (Expr::Type(name), Ty::of_type(ty));
            }
        }
        let (of, ty) = self.boxed(of);
        if let (Expr::Slot(_), Ty::Object(Decl::Variables(all))) = (&*of, &ty)
            && let Some((place, ty)) = self.variable(node.at, all, field)
        {
            return (Expr::Variable(place), ty);
        }
        let (target, is_optional) = match self.bound.resolve(&ty) {
            Ty::Optional(of) => ((*of).clone(), true),
            ty => (ty, optional),
        };
        let (name, found) = self.field(node.at, &target, field);
        let ty = if is_optional { Ty::optional(found) } else { found };
        (Expr::Select(of, name, optional), ty)
    }

    fn list(&mut self, items: &[(Node, bool)]) -> Typed<'s> {
        let (mut made, mut of) = (Vec::with_capacity(items.len()), Joined::default());
        for (item, optional) in items {
            let (expr, ty) = self.element(item, *optional);
            self.join(item.at, &mut of, ty);
            made.push((expr, *optional));
        }
        let of = of.ty.unwrap_or_else(|| self.bound.fresh());
        (Expr::List(made), Ty::list(of))
    }

    fn map(&mut self, fields: &[(Node, Node, bool)]) -> Typed<'s> {
        let (mut made, mut keys, mut values) = (Vec::with_capacity(fields.len()), Joined::default(), Joined::default());
        for (key, value, optional) in fields {
            let (name, ty) = self.make(key);
            self.join(key.at, &mut keys, ty);
            let (expr, ty) = self.element(value, *optional);
            self.join(value.at, &mut values, ty);
            made.push((name, expr, *optional));
        }
        let keys = keys.ty.unwrap_or_else(|| self.bound.fresh());
        let values = values.ty.unwrap_or_else(|| self.bound.fresh());
        (Expr::Map(made), Ty::map(keys, values))
    }

    /// A part of a list, a map or a structure; of an optional one the type of what it holds.
    fn element(&mut self, node: &Node, optional: bool) -> Typed<'s> {
        let (expr, ty) = self.make(node);
        if !optional {
            return (expr, ty);
        }
        match self.bound.resolve(&ty) {
            Ty::Optional(of) => (expr, (*of).clone()),
            ty if ty.is_loose() => (expr, Ty::Dyn),
            ty => {
                self.mismatch(node.at, &Ty::optional(ty.clone()), &ty);
                (expr, ty)
            }
        }
    }

    /// Adds the type of one more part. Parts of different types are any, and wrong where nobody formats them.
    fn join(&mut self, at: usize, all: &mut Joined<'s>, next: Ty<'s>) {
        let Some(before) = all.ty.take() else {
            all.first = Some(next.clone());
            all.ty = Some(next);
            return;
        };
        all.ty = Some(self.bound.join(&before, &next).unwrap_or(Ty::Dyn));
        if self.formats == 0
            && let Some(first) = &all.first
        {
            self.alike.push((at, first.clone(), next));
        }
    }

    fn structure(&mut self, at: usize, name: &str, fields: &[(usize, String, Node, bool)]) -> Typed<'s> {
        let decl = match name {
            "JSONPatch" if self.patches => Decl::Patch,
            name if self.patches && (name == "Object" || name.starts_with("Object.")) => Decl::Apply(name.into()),
            _ => return self.undeclared(at, name),
        };
        let mut made = Vec::with_capacity(fields.len());
        for (at, field, value, optional) in fields {
            let (expr, ty) = self.element(value, *optional);
            let known = decl.field(field);
            let fits = known.as_ref().is_some_and(|(_, known)| self.bound.assigns(known, &ty));
            if !fits {
                let ty = self.bound.resolve(&ty);
                let known = known.map(|(_, known)| known.to_string()).unwrap_or_default();
                let words = format!("expected type of field '{field}' is '{known}' but provided type is '{ty}'");
                self.fault(*at, words);
            }
            made.push((field.clone(), expr, *optional));
        }
        (Expr::Struct(name.into(), made), Ty::Object(decl))
    }

    fn call(&mut self, at: usize, name: &str, arguments: &[Node]) -> Typed<'s> {
        if name == "has" {
            return self.has(at, arguments);
        }
        let given: Vec<Typed<'s>> = arguments.iter().map(|node| self.make(node)).collect();
        self.function(at, name, given, false, arguments)
    }

    fn has(&mut self, at: usize, arguments: &[Node]) -> Typed<'s> {
        let [Node { is: Is::Select(of, field, false), at: dot, .. }] = arguments else {
            return self.fault(arguments.first().map_or(at, |one| one.at), "invalid argument to has() macro");
        };
        let (of, ty) = self.boxed(of);
        if let (Expr::Slot(_), Ty::Object(Decl::Variables(all))) = (&*of, &ty)
            && let Some((place, _)) = self.variable(*dot, all, field)
        {
            return (Expr::Declared(place), Ty::Bool);
        }
        let target = match self.bound.resolve(&ty) {
            Ty::Optional(of) => (*of).clone(),
            ty => ty,
        };
        let (name, _) = self.field(*dot, &target, field);
        (Expr::Has(of, name), Ty::Bool)
    }

    /// A call of a function of the library; what is written for its arguments, without that which it is called on.
    fn function(&mut self, at: usize, name: &str, given: Vec<Typed<'s>>, on: bool, written: &[Node]) -> Typed<'s> {
        let (mut exprs, types): (Vec<Expr>, Vec<Ty<'s>>) = given.into_iter().unzip();
        let known = signatures::find(name).filter(|(name, _)| *name != ESCAPE_KEY || self.patches);
        let Some((own, _)) = known else {
            let bare = name.trim_start_matches('.');
            // It is one, but not so.
            let other = if on { bare.to_owned() } else { format!(".{bare}") };
            return match signatures::find(&other) {
                Some(_) if other != ESCAPE_KEY => (Expr::Null, self.resolve(at, name, &types, on)),
                _ => self.undeclared(at, bare),
            };
        };
        let ty = self.resolve(at, own, &types, on);
        match (own, written) {
            (".matches", [Node { is: Is::Text(text), at, .. }])
            | ("matches", [_, Node { is: Is::Text(text), at, .. }]) => {
                let made = Translation::of(text).and_then(|pattern| {
                    let left = self.states.checked_sub(pattern.states + PATTERN_STATES);
                    self.states = left.ok_or("the expressions are too large")?;
                    pattern.check()
                });
                if made.is_err() {
                    self.literals.push(Fault::new(*at, "invalid matches argument"));
                }
                if !exprs.is_empty() {
                    return (Expr::Matches(Box::new(exprs.swap_remove(0)), Pattern::new(text)), ty);
                }
            }
            ("duration", [Node { is: Is::Text(text), at, .. }]) if duration(text).is_err() => {
                self.literals.push(Fault::new(*at, "invalid duration argument"));
            }
            ("timestamp", [Node { is: Is::Text(text), at, .. }]) if timestamp(text).is_err() => {
                self.literals.push(Fault::new(*at, "invalid timestamp argument"));
            }
            _ => {}
        }
        (Expr::Call(own, exprs), ty)
    }

    fn call_on(&mut self, at: usize, on: &Node, name: &str, arguments: &[Node]) -> Typed<'s> {
        // A function whose name has a dot, `sets.contains`.
        if let Some(space) = dotted(on) {
            let whole = format!("{space}.{name}");
            let is_known = signatures::find(&whole).is_some_and(|(name, _)| name != ESCAPE_KEY || self.patches);
            if is_known && !whole.starts_with('.') {
                return self.call(at, &whole, arguments);
            }
        }
        if self.binds
            && let (Is::Name(space), "bind", [named, part, whole]) = (&on.is, name, arguments)
            && space == "cel"
        {
            return self.bind(named, part, whole);
        }
        let count = arguments.len();
        let what = match (name, count) {
            ("all", 2 | 3) => Some(What::All),
            ("exists", 2 | 3) => Some(What::Exists),
            ("exists_one" | "existsOne", 2 | 3) => Some(What::ExistsOne),
            ("map", 2 | 3) | ("transformList", 3 | 4) => Some(What::Map),
            ("filter", 2) => Some(What::Filter),
            ("sortBy", 2) => Some(What::Sort),
            ("transformMap", 3 | 4) => Some(What::Fields),
            ("transformMapEntry", 3 | 4) => Some(What::Entries),
            ("optMap" | "optFlatMap", 2) => return self.chain(on, name == "optFlatMap", arguments),
            _ => None,
        };
        let Some(what) = what else {
            let mut given = vec![self.make(on)];
            let formats = usize::from(name == "format");
            self.formats += formats;
            given.extend(arguments.iter().map(|node| self.make(node)));
            self.formats -= formats;
            return self.function(at, &format!(".{name}"), given, true, arguments);
        };
        let variables = match name {
            "map" | "filter" | "sortBy" => 1,
            "transformList" | "transformMap" | "transformMapEntry" => 2,
            _ => count - 1,
        };
        self.repeat(at, what, on, variables, arguments)
    }

    fn repeat(&mut self, at: usize, what: What, on: &Node, variables: usize, arguments: &[Node]) -> Typed<'s> {
        let (over, ty) = self.make(on);
        let range = self.bound.resolve(&ty);
        let (first, second) = match &range {
            Ty::List(of) if variables == 1 => ((**of).clone(), Ty::Dyn),
            Ty::List(of) => (Ty::Int, (**of).clone()),
            Ty::Map(of) => (of.0.clone(), of.1.clone()),
            Ty::Dyn | Ty::Error => (Ty::Dyn, Ty::Dyn),
            Ty::Var(_) => {
                self.bound.assigns(&Ty::Dyn, &range);
                (Ty::Dyn, Ty::Dyn)
            }
            _ => {
                let words = format!(
                    "expression of type '{range}' cannot be range of a comprehension (must be list, map, or dynamic)"
                );
                self.fault(on.at, words);
                (Ty::Error, Ty::Error)
            }
        };
        let before = self.names.len();
        for (node, ty) in arguments.iter().zip([first.clone(), second]).take(variables) {
            match &node.is {
                Is::Name(name) => self.names.push((name.clone(), ty)),
                _ => {
                    self.names.truncate(before);
                    return self.fault(node.at, "argument must be a simple name");
                }
            }
        }
        let mut bodies = arguments.get(variables..).unwrap_or_default().iter();
        let filter = if bodies.len() == 2 { bodies.next().map(|node| self.condition(at, node, &first)) } else { None };
        let made = bodies.next().map(|node| match what {
            What::All | What::Exists => (self.bool(node), Ty::Bool),
            What::ExistsOne => (self.condition(at, node, &Ty::Int), Ty::Bool),
            What::Filter => (self.condition(at, node, &Ty::list(first.clone())), Ty::Bool),
            _ => self.make(node),
        });
        self.names.truncate(before);
        let Some((then, body)) = made else { return self.fault(at, "a macro without its body") };
        let body = self.bound.resolve(&body);
        let ty = match what {
            What::All | What::Exists | What::ExistsOne => Ty::Bool,
            What::Map => Ty::list(body),
            What::Filter | What::Sort => Ty::list(first),
            What::Fields => Ty::map(first, body),
            What::Entries if matches!(body, Ty::Map(_)) || body.is_loose() => body,
            What::Entries => {
                self.mismatch(at, &Ty::map(Ty::Dyn, Ty::Dyn), &body);
                Ty::Error
            }
        };
        (Expr::Loop(Box::new(Loop { what, over, two: variables == 2, filter, then })), ty)
    }

    /// What decides of an item: macros ask it as `_?_:_`, of which `ty` are the other two.
    fn condition(&mut self, at: usize, node: &Node, ty: &Ty<'s>) -> Expr {
        let (expr, found) = self.make(node);
        if !self.bound.assigns(&found, &Ty::Bool) {
            self.resolve(at, "_?_:_", &[found, ty.clone(), ty.clone()], false);
        }
        expr
    }

    fn bind(&mut self, named: &Node, part: &Node, whole: &Node) -> Typed<'s> {
        let Is::Name(name) = &named.is else {
            return self.fault(named.at, "cel.bind() variable names must be simple identifiers");
        };
        let (part, ty) = self.boxed(part);
        self.names.push((name.clone(), ty));
        let (whole, ty) = self.boxed(whole);
        self.names.pop();
        (Expr::Bind(part, whole), ty)
    }

    fn chain(&mut self, on: &Node, flat: bool, arguments: &[Node]) -> Typed<'s> {
        let (of, ty) = self.boxed(on);
        let [Node { is: Is::Name(name), .. }, then] = arguments else {
            return self.fault(on.at, "argument must be a simple name");
        };
        let inner = match self.bound.resolve(&ty) {
            Ty::Optional(of) => (*of).clone(),
            ty if ty.is_loose() => Ty::Dyn,
            ty => {
                let words = format!("found no matching overload for 'hasValue' applied to '{ty}.()'");
                self.fault(on.at, words);
                Ty::Error
            }
        };
        self.names.push((name.clone(), inner));
        let (then, ty) = self.boxed(then);
        self.names.pop();
        let ty = if flat { ty } else { Ty::optional(ty) };
        (Expr::Chain { of, then, flat }, ty)
    }
}
