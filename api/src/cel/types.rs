//! Types of expressions, and how they are put together: what may stand for what, and what a type with variables becomes
//! (cel-go's `checker`).

use std::cell::Cell;
use std::collections::HashMap;
use std::sync::Arc;

use crate::custom::{Additional, Structural, Type as Json};
use crate::schema;

use super::parse::RESERVED;
use super::value::Shape;

/// Parts that a type may have; one that has more is any.
const PARTS_MAX: usize = 256;

/// A type.
#[derive(Clone, Debug)]
pub(crate) enum Ty<'s> {
    /// Of what is wrong already: it goes with everything, so that each fault is told once.
    Error,
    Dyn,
    Null,
    Bool,
    Int,
    Uint,
    Double,
    Text,
    Bytes,
    Duration,
    Timestamp,
    List(Arc<Ty<'s>>),
    Map(Arc<(Ty<'s>, Ty<'s>)>),
    Optional(Arc<Ty<'s>>),
    Type(Arc<Ty<'s>>),
    /// Of a library, by its name.
    Opaque(&'static str),
    Object(Decl<'s>),
    Var(usize),
}

/// What declares the fields of an object.
#[derive(Clone)]
pub(crate) enum Decl<'s> {
    /// The schema of a custom resource.
    Schema(Shape<'s>, Arc<str>),
    /// A built-in type.
    BuiltIn(Arc<schema::Object>, Arc<str>),
    Fixed(&'static Fixed),
    Variables(Arc<Variables<'s>>),
    /// `Object`, `Object.spec` and so on, whose fields are any.
    Apply(Arc<str>),
    /// `JSONPatch`.
    Patch,
}

/// Expressions before this one, by what they are called.
#[derive(Clone, Default)]
pub(crate) struct Variables<'s> {
    all: Vec<Declared<'s>>,
    places: HashMap<String, usize>,
}

/// What is known of a declared expression.
#[derive(Clone)]
pub(crate) struct Declared<'s> {
    pub ty: Ty<'s>,
    /// How many levels its evaluation takes.
    pub depth: usize,
}

impl<'s> Variables<'s> {
    pub fn len(&self) -> usize {
        self.all.len()
    }

    pub fn push(&mut self, name: &str, declared: Declared<'s>) {
        self.places.insert(name.to_owned(), self.all.len());
        self.all.push(declared);
    }

    /// The last one of a name, and its place.
    pub fn find(&self, name: &str) -> Option<(usize, &Declared<'s>)> {
        let place = *self.places.get(name)?;
        self.all.get(place).map(|declared| (place, declared))
    }
}

/// A structure that is no kind of its own.
pub(crate) struct Fixed {
    pub name: &'static str,
    pub fields: &'static [(&'static str, Part)],
}

/// The type of a field of a [`Fixed`].
pub(crate) enum Part {
    Text,
    Bool,
    Int,
    Time,
    Any,
    Texts,
    TextMap,
    TextsMap,
    /// What is known by a domain and a name.
    AnyByDomain,
    QuantityByDomain,
    Of(&'static Fixed),
    List(&'static Fixed),
}

impl std::fmt::Debug for Decl<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl<'s> Decl<'s> {
    pub fn name(&self) -> &str {
        match self {
            Decl::Schema(_, name) | Decl::BuiltIn(_, name) | Decl::Apply(name) => name,
            Decl::Fixed(fixed) => fixed.name,
            Decl::Variables(_) => "kubernetes.variables",
            Decl::Patch => "JSONPatch",
        }
    }

    /// The own name of a field, which is written as a name of CEL, and its type.
    pub fn field(&self, written: &str) -> Option<(String, Ty<'s>)> {
        let below = |name: &str, of: &str| format!("{of}.{name}");
        let own = || written.to_owned();
        match self {
            Decl::Schema(shape, of) => {
                let name = unescape(written);
                // What is only kept is not seen.
                let is_kept = |schema: &Structural| {
                    schema.properties.get(&name).is_none() && !matches!(schema.additional, Additional::Of(_))
                };
                let found = shape.field(&name)?;
                if matches!(found, Shape::Free) && shape.schema().is_some_and(is_kept) {
                    return None;
                }
                let ty = Ty::of(found, &below(&name, of));
                Some((name, ty))
            }
            Decl::BuiltIn(object, of) => {
                let name = unescape(written);
                let field = object.fields.get(&name)?;
                let ty = Ty::of_built_in(&field.ty, &below(&name, of));
                Some((name, ty))
            }
            Decl::Fixed(fixed) => {
                let (_, part) = fixed.fields.iter().find(|(name, _)| *name == written)?;
                Some((own(), part.ty()))
            }
            Decl::Variables(all) => {
                let (_, declared) = all.find(written)?;
                Some((own(), declared.ty.clone()))
            }
            Decl::Apply(_) => Some((own(), Ty::Dyn)),
            Decl::Patch => match written {
                "op" | "path" | "from" => Some((own(), Ty::Text)),
                "value" => Some((own(), Ty::Dyn)),
                _ => None,
            },
        }
    }
}

impl Part {
    fn ty<'s>(&self) -> Ty<'s> {
        match self {
            Part::Text => Ty::Text,
            Part::Bool => Ty::Bool,
            Part::Int => Ty::Int,
            Part::Time => Ty::Timestamp,
            Part::Any => Ty::Dyn,
            Part::Texts => Ty::list(Ty::Text),
            Part::TextMap => Ty::map(Ty::Text, Ty::Text),
            Part::TextsMap => Ty::map(Ty::Text, Ty::list(Ty::Text)),
            Part::AnyByDomain => Ty::map(Ty::Text, Ty::map(Ty::Text, Ty::Dyn)),
            Part::QuantityByDomain => Ty::map(Ty::Text, Ty::map(Ty::Text, Ty::Opaque("kubernetes.Quantity"))),
            Part::Of(of) => Ty::Object(Decl::Fixed(of)),
            Part::List(of) => Ty::list(Ty::Object(Decl::Fixed(of))),
        }
    }
}

impl<'s> Ty<'s> {
    pub fn list(of: Ty<'s>) -> Ty<'s> {
        Ty::List(Arc::new(of)).cut()
    }

    pub fn map(key: Ty<'s>, value: Ty<'s>) -> Ty<'s> {
        Ty::Map(Arc::new((key, value))).cut()
    }

    pub fn optional(of: Ty<'s>) -> Ty<'s> {
        Ty::Optional(Arc::new(of)).cut()
    }

    pub fn of_type(of: Ty<'s>) -> Ty<'s> {
        Ty::Type(Arc::new(of)).cut()
    }

    /// The type of values of a schema.
    pub fn of(shape: Shape<'s>, name: &str) -> Ty<'s> {
        let object = || Ty::Object(Decl::Schema(shape, name.into()));
        let schema = match shape {
            Shape::Free => return Ty::Dyn,
            Shape::Text => return Ty::Text,
            Shape::Meta | Shape::Whole(_) => return object(),
            Shape::Of(schema) => schema,
        };
        match schema.ty {
            Json::Any | Json::IntOrString => Ty::Dyn,
            Json::Boolean => Ty::Bool,
            Json::Integer => Ty::Int,
            Json::Number => Ty::Double,
            Json::String => match schema.format() {
                "date-time" | "date" => Ty::Timestamp,
                "duration" => Ty::Duration,
                "byte" => Ty::Bytes,
                _ => Ty::Text,
            },
            Json::Array => Ty::list(match &schema.items {
                Some(items) => Ty::of(Shape::of(items), &format!("{name}.@idx")),
                None => Ty::Dyn,
            }),
            Json::Object => match &schema.additional {
                Additional::Of(values) => Ty::map(Ty::Text, Ty::of(Shape::of(values), &format!("{name}.@elem"))),
                Additional::Any => Ty::map(Ty::Text, Ty::Dyn),
                _ => object(),
            },
        }
    }

    /// The type of values of a built-in type.
    pub fn of_built_in(ty: &schema::Type, name: &str) -> Ty<'s> {
        match ty {
            schema::Type::Object(object) => Ty::Object(Decl::BuiltIn(object.clone(), name.into())),
            schema::Type::Named(named) => match named.object() {
                Some(object) => Ty::Object(Decl::BuiltIn(object.clone(), name.into())),
                None => Ty::Dyn,
            },
            schema::Type::Map(map) => Ty::map(Ty::Text, Ty::of_built_in(&map.values, &format!("{name}.@elem"))),
            schema::Type::List(list) => Ty::list(Ty::of_built_in(&list.items, &format!("{name}.@idx"))),
            schema::Type::String => Ty::Text,
            schema::Type::Bytes => Ty::Bytes,
            schema::Type::Time | schema::Type::MicroTime => Ty::Timestamp,
            schema::Type::Int32 | schema::Type::Int64 => Ty::Int,
            schema::Type::Float64 => Ty::Double,
            schema::Type::Bool => Ty::Bool,
            schema::Type::Quantity | schema::Type::IntOrString | schema::Type::Any | schema::Type::Deduced => Ty::Dyn,
        }
    }

    /// As it is, or any when it is too large to be looked at again and again.
    fn cut(self) -> Ty<'s> {
        let mut left = PARTS_MAX;
        if self.fits(&mut left) { self } else { Ty::Dyn }
    }

    fn fits(&self, left: &mut usize) -> bool {
        let Some(less) = left.checked_sub(1) else { return false };
        *left = less;
        match self {
            Ty::List(of) | Ty::Optional(of) | Ty::Type(of) => of.fits(left),
            Ty::Map(of) => of.0.fits(left) && of.1.fits(left),
            _ => true,
        }
    }

    /// How many types it is made of.
    fn parts(&self) -> usize {
        1 + match self {
            Ty::List(of) | Ty::Optional(of) | Ty::Type(of) => of.parts(),
            Ty::Map(of) => of.0.parts() + of.1.parts(),
            _ => 0,
        }
    }

    pub fn is_loose(&self) -> bool {
        matches!(self, Ty::Dyn | Ty::Error)
    }

    /// Whether it is this very type.
    pub fn is_exactly(&self, other: &Ty<'_>) -> bool {
        match (self, other) {
            (Ty::List(a), Ty::List(b)) | (Ty::Optional(a), Ty::Optional(b)) | (Ty::Type(a), Ty::Type(b)) => {
                a.is_exactly(b)
            }
            (Ty::Map(a), Ty::Map(b)) => a.0.is_exactly(&b.0) && a.1.is_exactly(&b.1),
            (Ty::Opaque(a), Ty::Opaque(b)) => a == b,
            (Ty::Object(a), Ty::Object(b)) => a.name() == b.name(),
            (Ty::Var(a), Ty::Var(b)) => a == b,
            _ => std::mem::discriminant(self) == std::mem::discriminant(other),
        }
    }

    /// As what is declared by another expression is known here: structures are any.
    pub fn plain(&self) -> Ty<'s> {
        match self {
            Ty::List(of) => Ty::list(of.plain()),
            Ty::Map(of) => Ty::map(of.0.plain(), of.1.plain()),
            Ty::Optional(_) | Ty::Type(_) | Ty::Opaque(_) | Ty::Object(_) | Ty::Var(_) | Ty::Error => Ty::Dyn,
            other => other.clone(),
        }
    }

    /// As types are named where values are (`null_type`).
    pub fn output(&self) -> String {
        match self {
            Ty::Null => "null_type".to_owned(),
            Ty::Duration => "google.protobuf.Duration".to_owned(),
            Ty::Timestamp => "google.protobuf.Timestamp".to_owned(),
            Ty::List(of) => format!("list({})", of.output()),
            Ty::Map(of) => format!("map({}, {})", of.0.output(), of.1.output()),
            Ty::Optional(of) => format!("optional_type({})", of.output()),
            Ty::Type(of) => format!("type({})", of.output()),
            other => other.to_string(),
        }
    }
}

/// As errors of the checker name it.
impl std::fmt::Display for Ty<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Ty::Error => f.write_str("!error!"),
            Ty::Dyn => f.write_str("dyn"),
            Ty::Null => f.write_str("null"),
            Ty::Bool => f.write_str("bool"),
            Ty::Int => f.write_str("int"),
            Ty::Uint => f.write_str("uint"),
            Ty::Double => f.write_str("double"),
            Ty::Text => f.write_str("string"),
            Ty::Bytes => f.write_str("bytes"),
            Ty::Duration => f.write_str("duration"),
            Ty::Timestamp => f.write_str("timestamp"),
            Ty::List(of) => write!(f, "list({of})"),
            Ty::Map(of) => write!(f, "map({}, {})", of.0, of.1),
            Ty::Optional(of) => write!(f, "optional_type({of})"),
            Ty::Type(of) => write!(f, "type({of})"),
            Ty::Opaque(name) => f.write_str(name),
            Ty::Object(of) => f.write_str(of.name()),
            Ty::Var(number) => write!(f, "_var{number}"),
        }
    }
}

/// Steps that putting types together may take, for each node of an expression and beside: types that stand for others may be
/// small and, written out, without end.
const NODE_STEPS: usize = 500;
const BASE_STEPS: usize = 100_000;

/// What variables of types stand for. What a try has found is forgotten when the try fails.
pub(crate) struct Bound<'s> {
    known: Vec<Option<Ty<'s>>>,
    undo: Vec<(usize, Option<Ty<'s>>)>,
    /// Steps that are left. Where none are, everything is any, and goes with everything.
    left: Cell<usize>,
}

impl<'s> Bound<'s> {
    /// For an expression of so many nodes.
    pub fn new(nodes: usize) -> Bound<'s> {
        let left = BASE_STEPS.saturating_add(nodes.saturating_mul(NODE_STEPS));
        Bound { known: Vec::new(), undo: Vec::new(), left: Cell::new(left) }
    }

    /// Whether no steps are left: what was found since is nothing.
    pub fn is_spent(&self) -> bool {
        self.left.get() == 0
    }

    /// Takes steps, when some are left.
    fn steps(&self, count: usize) -> bool {
        self.left.set(self.left.get().saturating_sub(count));
        !self.is_spent()
    }

    pub fn fresh(&mut self) -> Ty<'s> {
        self.known.push(None);
        Ty::Var(self.known.len() - 1)
    }

    /// The type of a signature, whose variables become these.
    pub fn instantiate(ty: &Ty<'s>, vars: &[Ty<'s>]) -> Ty<'s> {
        match ty {
            Ty::Var(at) => vars.get(*at).cloned().unwrap_or(Ty::Dyn),
            Ty::List(of) => Ty::list(Self::instantiate(of, vars)),
            Ty::Optional(of) => Ty::optional(Self::instantiate(of, vars)),
            Ty::Type(of) => Ty::of_type(Self::instantiate(of, vars)),
            Ty::Map(of) => Ty::map(Self::instantiate(&of.0, vars), Self::instantiate(&of.1, vars)),
            other => other.clone(),
        }
    }

    /// Whether a value of one type goes where the other is asked for.
    pub fn assigns(&mut self, given: &Ty<'s>, asked: &Ty<'s>) -> bool {
        let mark = self.undo.len();
        let goes = self.goes(given, asked);
        self.settle(mark, goes);
        goes
    }

    /// The same of a list of them.
    pub fn assigns_all(&mut self, given: &[Ty<'s>], asked: &[Ty<'s>]) -> bool {
        if given.len() != asked.len() {
            return false;
        }
        let mark = self.undo.len();
        let goes = given.iter().zip(asked).all(|(given, asked)| self.goes(given, asked));
        self.settle(mark, goes);
        goes
    }

    fn settle(&mut self, mark: usize, keep: bool) {
        if keep {
            self.undo.truncate(mark);
            return;
        }
        while self.undo.len() > mark {
            if let Some((at, before)) = self.undo.pop()
                && let Some(slot) = self.known.get_mut(at)
            {
                *slot = before;
            }
        }
    }

    fn bind(&mut self, at: usize, ty: Ty<'s>) {
        if let Some(slot) = self.known.get_mut(at) {
            let before = slot.replace(ty);
            self.undo.push((at, before));
        }
    }

    fn find(&self, at: usize) -> Option<&Ty<'s>> {
        self.known.get(at)?.as_ref()
    }

    fn goes(&mut self, a: &Ty<'s>, b: &Ty<'s>) -> bool {
        if !self.steps(1) {
            return true;
        }
        if let Ty::Var(at) = b {
            let (valid, known) = self.stands(a, *at);
            if valid || known {
                return valid;
            }
        }
        if let Ty::Var(at) = a {
            return self.stands(b, *at).0;
        }
        if a.is_loose() || b.is_loose() {
            return true;
        }
        let takes_null = |ty: &Ty<'_>| {
            matches!(ty, Ty::Null | Ty::Optional(_) | Ty::Opaque(_) | Ty::Object(_) | Ty::Duration | Ty::Timestamp)
        };
        match (a, b) {
            (Ty::Null, other) | (other, Ty::Null) => takes_null(other),
            (Ty::List(a), Ty::List(b)) | (Ty::Optional(a), Ty::Optional(b)) => self.goes(a, b),
            (Ty::Map(a), Ty::Map(b)) => self.goes(&a.0, &b.0) && self.goes(&a.1, &b.1),
            (Ty::Type(_), Ty::Type(_)) => true,
            _ => a.is_exactly(b),
        }
    }

    /// Whether a type can be what a variable stands for, and whether that stood for something.
    fn stands(&mut self, ty: &Ty<'s>, var: usize) -> (bool, bool) {
        if matches!(ty, Ty::Var(at) if *at == var) {
            return (true, true);
        }
        if let Some(known) = self.find(var).cloned() {
            self.steps(known.parts());
            if known.is_exactly(ty) {
                return (true, true);
            }
            if !self.goes(ty, &known) {
                return (false, true);
            }
            let wider = if self.is_wider(ty, &known) { ty.clone() } else { known };
            if self.is_free_of(var, &wider) {
                self.bind(var, wider);
            }
            return (true, true);
        }
        if self.is_free_of(var, ty) {
            self.bind(var, ty.clone());
            return (true, false);
        }
        (false, false)
    }

    /// Whether a type says no more than another.
    fn is_wider(&self, a: &Ty<'s>, b: &Ty<'s>) -> bool {
        match (a, b) {
            _ if !self.steps(1) => true,
            (Ty::Dyn | Ty::Error | Ty::Var(_), _) => true,
            (_, Ty::Dyn | Ty::Error | Ty::Var(_)) => false,
            (Ty::List(a), Ty::List(b)) | (Ty::Optional(a), Ty::Optional(b)) => self.is_wider(a, b),
            (Ty::Map(a), Ty::Map(b)) => self.is_wider(&a.0, &b.0) && self.is_wider(&a.1, &b.1),
            (Ty::Type(_), Ty::Type(_)) => true,
            _ => a.is_exactly(b),
        }
    }

    /// Whether a variable is nowhere in a type.
    fn is_free_of(&self, var: usize, ty: &Ty<'s>) -> bool {
        match ty {
            _ if !self.steps(1) => true,
            Ty::Var(at) if *at == var => false,
            Ty::Var(at) => self.find(*at).is_none_or(|known| self.is_free_of(var, known)),
            Ty::List(of) | Ty::Optional(of) | Ty::Type(of) => self.is_free_of(var, of),
            Ty::Map(of) => self.is_free_of(var, &of.0) && self.is_free_of(var, &of.1),
            _ => true,
        }
    }

    /// A type with what is known of its variables.
    pub fn resolve(&self, ty: &Ty<'s>) -> Ty<'s> {
        self.written_out(ty, false).cut()
    }

    /// The same, and what stands for nothing is any.
    pub fn settled(&self, ty: &Ty<'s>) -> Ty<'s> {
        self.written_out(ty, true).cut()
    }

    fn written_out(&self, ty: &Ty<'s>, settled: bool) -> Ty<'s> {
        let part = |ty: &Ty<'s>| self.written_out(ty, settled);
        match ty {
            _ if !self.steps(1) => Ty::Dyn,
            Ty::Var(at) => match self.find(*at) {
                Some(known) => part(known),
                None if settled => Ty::Dyn,
                None => ty.clone(),
            },
            Ty::List(of) => Ty::List(Arc::new(part(of))),
            Ty::Optional(of) => Ty::Optional(Arc::new(part(of))),
            Ty::Type(of) => Ty::Type(Arc::new(part(of))),
            Ty::Map(of) => Ty::Map(Arc::new((part(&of.0), part(&of.1)))),
            other => other.clone(),
        }
    }

    /// The wider of two types that go together.
    pub fn join(&mut self, before: &Ty<'s>, next: &Ty<'s>) -> Option<Ty<'s>> {
        if !self.assigns(before, next) {
            return None;
        }
        Some(if self.is_wider(before, next) { before.clone() } else { next.clone() })
    }
}

/// Names that CEL has for itself, beside [`RESERVED`]: a field of such a name is written between underscores.
const LITERALS: [&str; 4] = ["true", "false", "null", "in"];

fn is_word(text: &str) -> bool {
    LITERALS.contains(&text) || RESERVED.contains(&text)
}

/// Whether a text is a name of CEL.
pub(crate) fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c == '_' || c.is_ascii_alphabetic())
        && text.bytes().all(|byte| byte == b'_' || byte.is_ascii_alphanumeric())
        && !is_word(text)
}

/// The own name of a field that is written as a name of CEL.
fn unescape(name: &str) -> String {
    if let Some(word) = name.strip_prefix("__").and_then(|name| name.strip_suffix("__"))
        && is_word(word)
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
