//! Makes a tree into a program: names become places, macros loops. What can be known of types is checked: that a field of the
//! schema exists, and what a whole expression gives.

use super::library;
use super::parse::{Fault, Is, Node, Operator};
use super::value::Shape;
use crate::custom::pattern::{self, Pattern};
use crate::custom::structural::{Structural, Type};

/// The place of `oldSelf`; before it is that of `self`.
const OLD: usize = 1;

#[derive(Debug)]
pub(super) enum Expr {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    Text(String),
    Bytes(Vec<u8>),
    Type(&'static str),
    Slot(usize),
    Select(Box<Expr>, String, bool),
    Has(Box<Expr>, String),
    Index(Box<Expr>, Box<Expr>, bool),
    /// Of the library; one that is called on something has that as its first argument.
    Call(&'static str, Vec<Expr>),
    /// `matches` with an expression that is known.
    Matches(Box<Expr>, Pattern),
    List(Vec<(Expr, bool)>),
    Map(Vec<(Expr, Expr, bool)>),
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
}

#[derive(Debug)]
pub(super) struct Loop {
    pub what: What,
    pub over: Expr,
    /// Whether there is a variable for the place, or the key, as well as one for the value.
    pub two: bool,
    pub filter: Option<Expr>,
    pub then: Expr,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    All,
    Exists,
    ExistsOne,
    /// A list of what `then` gives.
    Map,
    /// A list of the items.
    Filter,
    /// A map of the keys to what `then` gives.
    Fields,
    /// A map of the entries that `then` gives.
    Entries,
}

/// What is known of the type of an expression.
#[derive(Clone, Copy)]
pub(super) enum Ty<'s> {
    Any,
    Bool,
    Text,
    /// Something else than a bool or a text.
    Other,
    Of(Shape<'s>),
    /// An optional of it.
    Maybe(Shape<'s>),
}

impl<'s> Ty<'s> {
    fn shape(self) -> Shape<'s> {
        match self {
            Ty::Of(shape) => shape,
            _ => Shape::Free,
        }
    }

    fn scalar(self) -> Option<Type> {
        match self {
            Ty::Bool => Some(Type::Boolean),
            Ty::Text => Some(Type::String),
            Ty::Other => Some(Type::Object),
            Ty::Maybe(_) => Some(Type::Object),
            Ty::Of(shape) => {
                shape.schema().map(|schema| schema.ty).filter(|ty| !matches!(ty, Type::Any | Type::IntOrString))
            }
            Ty::Any => None,
        }
    }

    /// What CEL calls the type of an expression, as far as it is known.
    pub fn name(self, expr: &Expr) -> &'static str {
        match (self, expr) {
            (Ty::Bool, _) => "bool",
            (Ty::Text, _) => "string",
            (Ty::Of(shape), _) => shape.schema().map_or("dyn", |schema| name_of(schema.ty)),
            (Ty::Maybe(_), _) => "optional_type",
            (_, Expr::Int(_)) => "int",
            (_, Expr::Uint(_)) => "uint",
            (_, Expr::Double(_)) => "double",
            (_, Expr::Bytes(_)) => "bytes",
            (_, Expr::Null) => "null_type",
            (_, Expr::List(_)) => "list",
            (_, Expr::Map(_)) => "map",
            _ => "dyn",
        }
    }

    /// Whether it can be no bool.
    pub fn is_no_bool(self) -> bool {
        self.scalar().is_some_and(|ty| ty != Type::Boolean)
    }

    /// Whether it can be no text.
    pub fn is_no_text(self) -> bool {
        self.scalar().is_some_and(|ty| ty != Type::String)
    }
}

/// A program, and what is known of it.
pub(super) struct Made<'s> {
    pub expr: Expr,
    pub ty: Ty<'s>,
    pub uses_old: bool,
}

/// Makes a program of a tree for values of a schema; `optional` when the old value is an optional one.
/// Of the states of expressions that it matches with it takes its part.
pub(super) fn make<'s>(
    node: &Node,
    schema: &'s Structural,
    root: bool,
    optional: bool,
    states: &mut usize,
) -> Result<Made<'s>, Fault> {
    let shape = if root { Shape::Whole(schema) } else { Shape::of(schema) };
    let old = if optional { Ty::Maybe(shape) } else { Ty::Of(shape) };
    let names = vec![("self".to_owned(), Ty::Of(shape)), ("oldSelf".to_owned(), old)];
    make_with(node, names, states)
}

/// Makes a program of a tree that may name these, each in its place.
pub(super) fn make_with<'s>(node: &Node, names: Vec<(String, Ty<'s>)>, states: &mut usize) -> Result<Made<'s>, Fault> {
    let mut maker = Maker { names, uses_old: false, states: *states };
    let made = maker.make(node);
    *states = maker.states;
    let (expr, ty) = made?;
    Ok(Made { expr, ty, uses_old: maker.uses_old })
}

struct Maker<'s> {
    names: Vec<(String, Ty<'s>)>,
    uses_old: bool,
    /// Of expressions, how many there may still be.
    states: usize,
}

type Typed<'s> = (Expr, Ty<'s>);

fn undeclared(at: usize, name: &str) -> Fault {
    Fault::new(at, format!("undeclared reference to '{name}' (in container '')"))
}

impl<'s> Maker<'s> {
    fn boxed(&mut self, node: &Node) -> Result<(Box<Expr>, Ty<'s>), Fault> {
        let (expr, ty) = self.make(node)?;
        Ok((Box::new(expr), ty))
    }

    fn make(&mut self, node: &Node) -> Result<Typed<'s>, Fault> {
        Ok(match &node.is {
            Is::Null => (Expr::Null, Ty::Any),
            Is::Bool(value) => (Expr::Bool(*value), Ty::Bool),
            Is::Int(value) => (Expr::Int(*value), Ty::Other),
            Is::Uint(value) => (Expr::Uint(*value), Ty::Other),
            Is::Double(value) => (Expr::Double(*value), Ty::Other),
            Is::Text(value) => (Expr::Text(value.clone()), Ty::Text),
            Is::Bytes(value) => (Expr::Bytes(value.clone()), Ty::Other),
            Is::Name(name) => self.name(node.at, name)?,
            Is::Select(of, field, optional) => self.select(node.at, of, field, *optional)?,
            Is::Index(of, at, optional) => {
                let (of, ty) = self.boxed(of)?;
                let (at, _) = self.boxed(at)?;
                let (shape, maybe) = match ty {
                    Ty::Of(shape) => (Some(shape), *optional),
                    Ty::Maybe(shape) => (Some(shape), true),
                    _ => (None, *optional),
                };
                let ty = match (shape.and_then(element), maybe) {
                    (Some(shape), true) => Ty::Maybe(shape),
                    (Some(shape), false) => Ty::Of(shape),
                    (None, _) => Ty::Any,
                };
                (Expr::Index(of, at, *optional), ty)
            }
            Is::Call(None, name, arguments) => self.call(node.at, name, None, arguments)?,
            Is::Call(Some(on), name, arguments) => self.call_on(node.at, on, name, arguments)?,
            Is::List(items) => {
                let items = items.iter().map(|(item, optional)| Ok((self.make(item)?.0, *optional)));
                (Expr::List(items.collect::<Result<_, Fault>>()?), Ty::Other)
            }
            Is::Map(fields) => {
                let fields =
                    fields.iter().map(|(key, value, optional)| Ok((self.make(key)?.0, self.make(value)?.0, *optional)));
                (Expr::Map(fields.collect::<Result<_, Fault>>()?), Ty::Other)
            }
            Is::All(parts) => (Expr::All(self.bools(parts, "_&&_")?), Ty::Bool),
            Is::Any(parts) => (Expr::Any(self.bools(parts, "_||_")?), Ty::Bool),
            Is::Not(of) => {
                let mut parts = self.bools(std::slice::from_ref(of), "!_")?;
                (Expr::Not(Box::new(parts.pop().unwrap_or(Expr::Null))), Ty::Bool)
            }
            Is::Negative(of) => (Expr::Negative(self.boxed(of)?.0), Ty::Any),
            Is::Either(condition, yes, no) => {
                let (condition, ty) = self.boxed(condition)?;
                if ty.is_no_bool() {
                    return Err(Fault::new(node.at, "found no matching overload for '_?_:_'"));
                }
                let ((yes, a), (no, b)) = (self.boxed(yes)?, self.boxed(no)?);
                let ty = match (a.scalar(), b.scalar()) {
                    (Some(Type::Boolean), Some(Type::Boolean)) => Ty::Bool,
                    (Some(Type::String), Some(Type::String)) => Ty::Text,
                    _ => Ty::Any,
                };
                (Expr::Either(condition, yes, no), ty)
            }
            Is::Binary(operator, left, right) => {
                let ((left, a), (right, _)) = (self.boxed(left)?, self.boxed(right)?);
                let ty = match operator {
                    Operator::Add if a.scalar() == Some(Type::String) => Ty::Text,
                    Operator::Add => Ty::Any,
                    Operator::Subtract | Operator::Multiply | Operator::Divide | Operator::Modulo => Ty::Other,
                    _ => Ty::Bool,
                };
                (Expr::Binary(*operator, left, right), ty)
            }
        })
    }

    fn bools(&mut self, parts: &[impl std::borrow::Borrow<Node>], operator: &str) -> Result<Vec<Expr>, Fault> {
        let mut made = Vec::with_capacity(parts.len());
        for part in parts {
            let (expr, ty) = self.make(part.borrow())?;
            if ty.is_no_bool() {
                return Err(Fault::new(part.borrow().at, format!("found no matching overload for '{operator}'")));
            }
            made.push(expr);
        }
        Ok(made)
    }

    fn name(&mut self, at: usize, name: &str) -> Result<Typed<'s>, Fault> {
        if let Some(slot) = self.names.iter().rposition(|(known, _)| known == name) {
            self.uses_old |= slot == OLD;
            return Ok((Expr::Slot(slot), self.names.get(slot).map_or(Ty::Any, |(_, ty)| *ty)));
        }
        let ty = library::TYPES.iter().find(|known| **known == name).ok_or_else(|| undeclared(at, name))?;
        Ok((Expr::Type(ty), Ty::Other))
    }

    /// The own name and the type of a field of what has a schema.
    fn field(at: usize, shape: Shape<'s>, field: &str) -> Result<(String, Ty<'s>), Fault> {
        if let Some(schema) = shape.schema()
            && matches!(schema.ty, Type::String | Type::Boolean | Type::Integer | Type::Number | Type::Array)
        {
            return Err(Fault::new(at, format!("type '{}' does not support field selection", name_of(schema.ty))));
        }
        let name = if shape.has_fields() { unescape(field) } else { field.to_owned() };
        match shape.field(&name) {
            Some(of) => Ok((name, Ty::Of(of))),
            None => Err(Fault::new(at, format!("undefined field '{field}'"))),
        }
    }

    fn select(&mut self, at: usize, of: &Node, field: &str, optional: bool) -> Result<Typed<'s>, Fault> {
        let (of, ty) = self.boxed(of)?;
        let (name, ty) = match ty {
            Ty::Of(shape) => {
                let (name, ty) = Self::field(at, shape, field)?;
                (name, if optional { Ty::Maybe(ty.shape()) } else { ty })
            }
            Ty::Maybe(shape) => {
                let (name, ty) = Self::field(at, shape, field)?;
                (name, Ty::Maybe(ty.shape()))
            }
            Ty::Bool | Ty::Text => {
                return Err(Fault::new(at, format!("type does not support field selection of '{field}'")));
            }
            Ty::Any | Ty::Other => (field.to_owned(), Ty::Any),
        };
        Ok((Expr::Select(of, name, optional), ty))
    }

    fn all(&mut self, nodes: &[Node]) -> Result<Vec<Expr>, Fault> {
        nodes.iter().map(|node| Ok(self.make(node)?.0)).collect()
    }

    fn call(&mut self, at: usize, name: &str, first: Option<Expr>, arguments: &[Node]) -> Result<Typed<'s>, Fault> {
        if name == "has" && first.is_none() {
            return match arguments {
                [Node { is: Is::Select(of, field, false), at, .. }] => {
                    let (of, ty) = self.boxed(of)?;
                    let name = match ty {
                        Ty::Of(shape) | Ty::Maybe(shape) => Self::field(*at, shape, field)?.0,
                        _ => field.clone(),
                    };
                    Ok((Expr::Has(of, name), Ty::Bool))
                }
                _ => Err(Fault::new(at, "invalid argument to has() macro")),
            };
        }
        let function = library::find(name, usize::from(first.is_some()) + arguments.len());
        let function = function.map_err(|is_known| match is_known {
            true => Fault::new(at, format!("found no matching overload for '{}'", name.trim_start_matches('.'))),
            false => undeclared(at, name.trim_start_matches('.')),
        })?;
        let mut given: Vec<Expr> = first.into_iter().collect();
        given.extend(self.all(arguments)?);
        if let (".matches" | "matches", [_, Expr::Text(text)]) = (function.name, given.as_slice()) {
            let wrong = |words: String| Fault::new(at, format!("invalid matches argument: {words}"));
            let states = pattern::check(text).map_err(wrong)?;
            let left = self.states.checked_sub(states);
            self.states = left.ok_or_else(|| wrong("the expressions of the schema are too large".to_owned()))?;
            let pattern = Pattern::new(text);
            let of = given.swap_remove(0);
            return Ok((Expr::Matches(Box::new(of), pattern), Ty::Bool));
        }
        let ty = match function.gives {
            library::Gives::Bool => Ty::Bool,
            library::Gives::Text => Ty::Text,
            library::Gives::Other => Ty::Other,
            library::Gives::Any => Ty::Any,
        };
        Ok((Expr::Call(function.name, given), ty))
    }

    fn call_on(&mut self, at: usize, on: &Node, name: &str, arguments: &[Node]) -> Result<Typed<'s>, Fault> {
        // A function whose name has a dot, `sets.contains`.
        if let Is::Name(space) = &on.is
            && !self.names.iter().any(|(known, _)| known == space)
        {
            let whole = format!("{space}.{name}");
            return self.call(at, &whole, None, arguments);
        }
        let count = arguments.len();
        let what = match (name, count) {
            ("all", 2 | 3) => Some(What::All),
            ("exists", 2 | 3) => Some(What::Exists),
            ("exists_one" | "existsOne", 2 | 3) => Some(What::ExistsOne),
            ("map", 2 | 3) | ("transformList", 3 | 4) => Some(What::Map),
            ("filter", 2) => Some(What::Filter),
            ("transformMap", 3 | 4) => Some(What::Fields),
            ("transformMapEntry", 3 | 4) => Some(What::Entries),
            ("optMap" | "optFlatMap", 2) => return self.chain(on, name == "optFlatMap", arguments),
            _ => None,
        };
        let Some(what) = what else {
            let (on, _) = self.make(on)?;
            return self.call(at, &format!(".{name}"), Some(on), arguments);
        };
        let variables = match name {
            "map" | "filter" => 1,
            "transformList" | "transformMap" | "transformMapEntry" => 2,
            _ => count - 1,
        };
        let (over, ty) = self.make(on)?;
        let shape = match ty {
            Ty::Of(shape) => shape,
            _ => Shape::Free,
        };
        let is_list = shape.schema().is_some_and(|schema| schema.ty == Type::Array);
        let value = element(shape).map_or(Ty::Any, Ty::Of);
        let types = match (variables, is_list) {
            (1, true) => vec![value],
            (1, false) => vec![Ty::Any],
            _ => vec![Ty::Any, value],
        };
        let before = self.names.len();
        for (node, ty) in arguments.iter().zip(types) {
            match &node.is {
                Is::Name(name) => self.names.push((name.clone(), ty)),
                _ => return Err(Fault::new(node.at, "argument must be a simple name")),
            }
        }
        let mut bodies = arguments.get(variables..).unwrap_or_default().iter();
        let made = (|| {
            let filter = match bodies.len() {
                2 => bodies.next().map(|node| self.make(node)).transpose()?.map(|(expr, _)| expr),
                _ => None,
            };
            let then = bodies.next().map(|node| self.make(node)).transpose()?;
            Ok::<_, Fault>((filter, then))
        })();
        self.names.truncate(before);
        let (filter, then) = made?;
        let Some((then, body)) = then else { return Err(Fault::new(at, "a macro without its body")) };
        let decides = matches!(what, What::All | What::Exists | What::ExistsOne | What::Filter);
        if decides && body.is_no_bool() {
            return Err(Fault::new(at, "found no matching overload for '_&&_'"));
        }
        let ty = match what {
            What::All | What::Exists | What::ExistsOne => Ty::Bool,
            _ => Ty::Other,
        };
        Ok((Expr::Loop(Box::new(Loop { what, over, two: variables == 2, filter, then })), ty))
    }

    fn chain(&mut self, on: &Node, flat: bool, arguments: &[Node]) -> Result<Typed<'s>, Fault> {
        let (of, ty) = self.boxed(on)?;
        let [Node { is: Is::Name(name), .. }, then] = arguments else {
            return Err(Fault::new(on.at, "argument must be a simple name"));
        };
        let ty = match ty {
            Ty::Maybe(shape) => Ty::Of(shape),
            _ => Ty::Any,
        };
        self.names.push((name.clone(), ty));
        let then = self.boxed(then);
        self.names.pop();
        Ok((Expr::Chain { of, then: then?.0, flat }, Ty::Any))
    }
}

/// The shape of what is in a list or a map.
fn element(shape: Shape<'_>) -> Option<Shape<'_>> {
    let schema = shape.schema()?;
    match (&schema.items, &schema.additional) {
        (Some(items), _) => Some(Shape::of(items)),
        (None, crate::custom::structural::Additional::Of(of)) => Some(Shape::of(of)),
        _ => None,
    }
}

fn name_of(ty: Type) -> &'static str {
    match ty {
        Type::String => "string",
        Type::Boolean => "bool",
        Type::Integer => "int",
        Type::Number => "double",
        Type::Array => "list",
        _ => "map",
    }
}

/// Names that CEL has for itself: a field of such a name is written between underscores.
const WORDS: [&str; 21] = [
    "true",
    "false",
    "null",
    "in",
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
];

/// The own name of a field that is written as a name of CEL.
fn unescape(name: &str) -> String {
    if let Some(word) = name.strip_prefix("__").and_then(|name| name.strip_suffix("__"))
        && WORDS.contains(&word)
    {
        return word.to_owned();
    }
    let mut out = String::with_capacity(name.len());
    let mut rest = name;
    while let Some(at) = rest.find("__") {
        out.push_str(rest.get(..at).unwrap_or_default());
        rest = rest.get(at..).unwrap_or_default();
        let signs = [("__underscores__", "__"), ("__dot__", "."), ("__dash__", "-"), ("__slash__", "/")];
        match signs.iter().find(|(written, _)| rest.starts_with(written)) {
            Some((written, sign)) => {
                out.push_str(sign);
                rest = rest.get(written.len()..).unwrap_or_default();
            }
            None => {
                out.push_str("__");
                rest = rest.get(2..).unwrap_or_default();
            }
        }
    }
    out.push_str(rest);
    out
}
