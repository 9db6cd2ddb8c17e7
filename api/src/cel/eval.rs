//! Evaluates programs. Every step has a cost, about what Kubernetes counts, so that the time and the memory that a rule can
//! take are bounded whatever it says and whatever it is asked about.

use std::fmt::{self, Write as _};

use super::authority::Authorizer;
use super::library;
use super::parse::Operator;
use super::program::{Expr, Loop, What};
use super::value::{Held, Text, Val, contains};
use crate::custom::pattern::Pattern;

/// Why an evaluation has no value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Stop {
    /// It costs more than it may.
    Cost,
    Fault(String),
}

/// Longest words of a fault: they may show what was computed, and others may go on where one fails.
const WORDS_BYTES_MAX: usize = 1 << 10;

/// Words, as many as fit.
struct Words(String);

impl fmt::Write for Words {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let left = WORDS_BYTES_MAX.saturating_sub(self.0.len());
        if text.len() <= left {
            self.0.push_str(text);
            return Ok(());
        }
        self.0.push_str(text.get(..text.floor_char_boundary(left)).unwrap_or_default());
        self.0.push('…');
        // Nothing further is worded.
        Err(fmt::Error)
    }
}

impl Stop {
    pub fn new(message: impl fmt::Display) -> Stop {
        let mut words = Words(String::new());
        let _ = write!(words, "{message}");
        Stop::Fault(words.0)
    }

    /// What a function is called with is nothing that it takes.
    pub fn overload() -> Stop {
        Stop::new("no such overload")
    }
}

/// An evaluation.
pub(crate) struct Run<'a> {
    slots: Vec<Val<'a>>,
    /// How many of them are there from the beginning.
    base: usize,
    /// What one program may cost.
    limit: usize,
    /// What this one was given, and still may.
    given: usize,
    left: usize,
    /// What all of them still may.
    pool: usize,
    asked: usize,
    /// Steps for which no unit was paid yet.
    steps: usize,
    /// How many levels it is in.
    level: usize,
    /// What the kept values of variables have cost.
    kept: usize,
    /// What the programs have cost that wait for the value of a variable.
    waiting: usize,
    /// Who answers what is asked of `authorizer`.
    pub authorizer: Option<&'a dyn Authorizer>,
    /// What is declared, and what it gave once somebody asked.
    variables: Vec<Variable<'a>>,
}

/// That this is no place in a list.
fn no_place(at: &Val<'_>) -> Stop {
    match at {
        Val::Double(place) => Stop::new(format_args!("unsupported index value {place} in list")),
        at => Stop::new(format_args!("unsupported index type '{}' in list", at.type_name())),
    }
}

/// What a loop goes over.
type Entries<'a> = Box<dyn Iterator<Item = (Val<'a>, Val<'a>)> + 'a>;

/// A declared expression.
struct Variable<'a> {
    name: &'a str,
    program: &'a Expr,
    value: Option<Result<Val<'a>, Stop>>,
}

/// Units that the values of declared expressions may have cost that are kept: each stands for some hundred bytes at most.
const KEPT_MAX: usize = 1_500_000;
/// Units that the programs may have cost together that wait for a variable, and hold what they have made.
const WAITING_MAX: usize = 1_000_000;
/// Steps for one unit beside what the steps themselves say.
const UNIT_STEPS: usize = 10;
/// How deep an evaluation may nest, through the variables that it asks and the values that it compares: a level takes 2.6 KiB
/// of a worker's stack of 2 MiB at most, in a debug build.
pub(super) const LEVELS_MAX: usize = 400;

impl<'a> Run<'a> {
    /// One that may cost so much.
    pub fn new(budget: usize) -> Run<'a> {
        Run::of(budget, budget)
    }

    /// One whose programs may cost `limit` each and `pool` together.
    pub fn of(limit: usize, pool: usize) -> Run<'a> {
        Run {
            slots: Vec::new(),
            base: 0,
            limit,
            given: limit.min(pool),
            left: limit.min(pool),
            pool,
            asked: pool,
            authorizer: None,
            variables: Vec::new(),
            steps: 0,
            level: 0,
            kept: 0,
            waiting: 0,
        }
    }

    /// The value of a program for these variables.
    pub fn program(&mut self, program: &'a Expr, slots: Vec<Val<'a>>) -> Result<Val<'a>, Stop> {
        self.set(slots);
        self.eval(program)
    }

    /// The value of a further program for the same variables, which may cost as much as one may.
    pub fn further(&mut self, program: &'a Expr) -> Result<Val<'a>, Stop> {
        self.given = self.limit.min(self.pool);
        self.left = self.given;
        self.eval(program)
    }

    /// What programs find in their places from here on.
    pub fn set(&mut self, slots: Vec<Val<'a>>) {
        self.base = slots.len();
        self.slots = slots;
    }

    /// What programs may name beside: evaluated when one of them asks, and once.
    pub fn declare(&mut self, variables: impl Iterator<Item = (&'a str, &'a Expr)>) {
        self.variables = variables.map(|(name, program)| Variable { name, program, value: None }).collect();
    }

    fn variable(&mut self, at: usize) -> Result<Val<'a>, Stop> {
        let Some(Variable { name, program, value }) = self.variables.get(at) else {
            return Err(Stop::new("no such attribute"));
        };
        if let Some(value) = value {
            return value.clone();
        }
        let (name, program) = (*name, *program);
        let (given, left, pool, kept) = (self.given, self.left, self.pool, self.kept);
        if self.waiting + (given - left) > WAITING_MAX {
            return Err(Stop::new("the variables that wait for one another have cost too much"));
        }
        // It sees the places of the beginning, not those of loops around, and costs as a program of its own.
        let around = self.slots.split_off(self.base.min(self.slots.len()));
        self.waiting += given - left;
        self.given = self.limit.min(pool);
        self.left = self.given;
        let value = match self.eval(program) {
            Err(Stop::Fault(words)) => {
                Err(Stop::new(format_args!("composited variable \"{name}\" fails to evaluate: {words}")))
            }
            value => value,
        };
        self.waiting -= given - left;
        self.left = left.min(self.pool);
        self.given = given - (left - self.left);
        self.slots.truncate(self.base);
        self.slots.extend(around);
        // One that was cut short may have a value where more is left; one that is large is made again.
        let cost = (pool - self.pool).saturating_sub(self.kept - kept);
        if !matches!(value, Err(Stop::Cost))
            && self.kept + cost <= KEPT_MAX
            && let Some(variable) = self.variables.get_mut(at)
        {
            self.kept += cost;
            variable.value = Some(value.clone());
        }
        value
    }

    /// What it has cost.
    pub fn spent(&self) -> usize {
        self.asked - self.pool
    }

    /// Whether nothing is left for any program.
    pub fn is_spent(&self) -> bool {
        self.pool == 0
    }

    pub fn spend(&mut self, cost: usize) -> Result<(), Stop> {
        match self.left.checked_sub(cost) {
            Some(left) => {
                self.left = left;
                // It is never less than what is left of a part of it.
                self.pool = self.pool.saturating_sub(cost);
                Ok(())
            }
            None => {
                self.pool = self.pool.saturating_sub(self.left);
                self.left = 0;
                Err(Stop::Cost)
            }
        }
    }

    fn enter(&mut self) -> Result<(), Stop> {
        if self.level >= LEVELS_MAX {
            return Err(Stop::new("the expression nests too deeply"));
        }
        self.level += 1;
        Ok(())
    }

    /// Does something a level below.
    pub fn below<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T, Stop>) -> Result<T, Stop> {
        self.enter()?;
        let outcome = work(self);
        self.level -= 1;
        outcome
    }

    /// The value of an expression. What it does for each kind stands in a function of its own: this one's room is taken for every
    /// level.
    pub fn eval(&mut self, expr: &'a Expr) -> Result<Val<'a>, Stop> {
        self.steps += 1;
        if self.steps == UNIT_STEPS {
            self.steps = 0;
            self.spend(1)?;
        }
        self.enter()?;
        let value = match expr {
            Expr::Slot(at) => self.slot(*at),
            Expr::Variable(at) => self.spend(1).and_then(|()| self.variable(*at)),
            Expr::Declared(at) => self.variable(*at).map(|_| Val::Bool(true)),
            Expr::Struct(name, fields) => self.structure(name, fields),
            Expr::Select(of, field, optional) => self.selected(of, field, *optional),
            Expr::Has(of, field) => self.has(of, field),
            Expr::Index(of, at, optional) => self.indexed(of, at, *optional),
            Expr::Call(name, arguments) => self.call(name, arguments),
            Expr::Matches(of, pattern) => self.matches(of, pattern),
            Expr::List(items) => self.list(items),
            Expr::Map(fields) => self.map(fields),
            Expr::All(parts) => self.decided(parts, false),
            Expr::Any(parts) => self.decided(parts, true),
            Expr::Not(of) => self.not(of),
            Expr::Negative(of) => self.negative(of),
            Expr::Either(condition, yes, no) => self.either(condition, yes, no),
            Expr::Binary(operator, left, right) => self.operated(*operator, left, right),
            Expr::Loop(of) => self.repeat(of),
            Expr::Chain { of, then, flat } => self.chain(of, then, *flat),
            Expr::Bind(part, whole) => self.bound(part, whole),
            literal => Ok(literal_value(literal)),
        };
        self.level -= 1;
        value
    }

    fn slot(&mut self, at: usize) -> Result<Val<'a>, Stop> {
        self.spend(1)?;
        self.slots.get(at).cloned().ok_or_else(|| Stop::new("no such attribute"))
    }

    fn structure(&mut self, name: &'a str, fields: &'a [(String, Expr, bool)]) -> Result<Val<'a>, Stop> {
        self.spend(fields.len().max(40))?;
        let mut made = Vec::with_capacity(fields.len());
        for (field, value, optional) in fields {
            let value = self.eval(value)?;
            made.extend(part(value, *optional)?.map(|value| (field.as_str(), value)));
        }
        Val::structure(name, made)
    }

    fn selected(&mut self, of: &'a Expr, field: &'a str, optional: bool) -> Result<Val<'a>, Stop> {
        let of = self.eval(of)?;
        self.select(&of, field, optional)
    }

    fn has(&mut self, of: &'a Expr, field: &'a str) -> Result<Val<'a>, Stop> {
        let of = match self.eval(of)? {
            Val::Optional(None) => return Ok(Val::Bool(false)),
            Val::Optional(Some(of)) => (*of).clone(),
            of => of,
        };
        self.spend(1)?;
        let found = match of {
            Val::Fields(..) | Val::Struct(..) => of.field(field, self)?,
            Val::Map(_) => of.at(&Val::Text(Text::Of(field)), self)?,
            Val::List(_) | Val::Items(..) => return Err(no_place(&Val::Text(Text::Of(field)))),
            // What has no fields has not this one: an object that is not there is null.
            _ => None,
        };
        Ok(Val::Bool(found.is_some()))
    }

    fn indexed(&mut self, of: &'a Expr, at: &'a Expr, optional: bool) -> Result<Val<'a>, Stop> {
        let (of, at) = (self.eval(of)?, self.eval(at)?);
        self.index(&of, &at, optional)
    }

    fn call(&mut self, name: &str, arguments: &'a [Expr]) -> Result<Val<'a>, Stop> {
        let mut given = Vec::with_capacity(arguments.len());
        for argument in arguments {
            given.push(self.eval(argument)?);
        }
        self.spend(1)?;
        library::call(self, name, &given)
    }

    fn matches(&mut self, of: &'a Expr, pattern: &'a Pattern) -> Result<Val<'a>, Stop> {
        let Val::Text(text) = self.eval(of)? else { return Err(Stop::overload()) };
        self.spend(pattern.cost(text.len()) + text.len() / 10)?;
        Ok(Val::Bool(pattern.matches(&text)))
    }

    fn list(&mut self, items: &'a [(Expr, bool)]) -> Result<Val<'a>, Stop> {
        self.spend(items.len().max(10))?;
        let mut made = Vec::with_capacity(items.len());
        for (item, optional) in items {
            let item = self.eval(item)?;
            made.extend(part(item, *optional)?);
        }
        Val::list(made)
    }

    fn map(&mut self, fields: &'a [(Expr, Expr, bool)]) -> Result<Val<'a>, Stop> {
        self.spend(fields.len().max(30))?;
        let mut made = Vec::with_capacity(fields.len());
        for (key, value, optional) in fields {
            let (key, value) = (self.eval(key)?, self.eval(value)?);
            if let Some(value) = part(value, *optional)? {
                self.insert(&mut made, key, value)?;
            }
        }
        Val::map(made)
    }

    fn not(&mut self, of: &'a Expr) -> Result<Val<'a>, Stop> {
        match self.eval(of)? {
            Val::Bool(value) => Ok(Val::Bool(!value)),
            _ => Err(Stop::overload()),
        }
    }

    fn negative(&mut self, of: &'a Expr) -> Result<Val<'a>, Stop> {
        self.spend(1)?;
        match self.eval(of)? {
            Val::Int(value) => value.checked_neg().map(Val::Int).ok_or_else(|| Stop::new("integer overflow")),
            Val::Double(value) => Ok(Val::Double(-value)),
            _ => Err(Stop::overload()),
        }
    }

    fn either(&mut self, condition: &'a Expr, yes: &'a Expr, no: &'a Expr) -> Result<Val<'a>, Stop> {
        match self.eval(condition)? {
            Val::Bool(true) => self.eval(yes),
            Val::Bool(false) => self.eval(no),
            _ => Err(Stop::overload()),
        }
    }

    fn operated(&mut self, operator: Operator, left: &'a Expr, right: &'a Expr) -> Result<Val<'a>, Stop> {
        let (left, right) = (self.eval(left)?, self.eval(right)?);
        self.spend(1)?;
        self.binary(operator, &left, &right)
    }

    fn bound(&mut self, part: &'a Expr, whole: &'a Expr) -> Result<Val<'a>, Stop> {
        let part = self.eval(part)?;
        let before = self.slots.len();
        self.slots.push(part);
        let value = self.eval(whole);
        self.slots.truncate(before);
        value
    }

    fn chain(&mut self, of: &'a Expr, then: &'a Expr, flat: bool) -> Result<Val<'a>, Stop> {
        let value = match self.eval(of)? {
            Val::Optional(None) => return Ok(Val::Optional(None)),
            Val::Optional(Some(value)) => (*value).clone(),
            _ => return Err(Stop::overload()),
        };
        let before = self.slots.len();
        self.slots.push(value);
        let value = self.eval(then);
        self.slots.truncate(before);
        if flat { value } else { Val::some(value?) }
    }

    /// A map with one more entry, whose key is new.
    fn insert(&mut self, fields: &mut Vec<(Val<'a>, Val<'a>)>, key: Val<'a>, value: Val<'a>) -> Result<(), Stop> {
        if !matches!(key, Val::Bool(_) | Val::Int(_) | Val::Uint(_) | Val::Text(_)) {
            return Err(Stop::new("unsupported key type"));
        }
        for (known, _) in fields.iter() {
            if known.same(&key, self)? {
                return Err(Stop::new("Failed with repeated key"));
            }
        }
        fields.push((key, value));
        Ok(())
    }

    fn select(&mut self, of: &Val<'a>, field: &'a str, optional: bool) -> Result<Val<'a>, Stop> {
        self.spend(1)?;
        if let Val::Optional(of) = of {
            return match of {
                None => Ok(Val::Optional(None)),
                Some(of) => self.select(of, field, true),
            };
        }
        let found = match of {
            Val::Fields(..) | Val::Struct(..) => of.field(field, self)?,
            Val::Map(_) => of.at(&Val::Text(Text::Of(field)), self)?,
            // As cel-go says it of what has no fields.
            _ => None,
        };
        match (found, optional) {
            (found, true) => Val::optional(found),
            (Some(found), false) => Ok(found),
            (None, false) => Err(Stop::new(format_args!("no such key: {field}"))),
        }
    }

    fn index(&mut self, of: &Val<'a>, at: &Val<'a>, optional: bool) -> Result<Val<'a>, Stop> {
        self.spend(1)?;
        let (found, missing) = match of {
            Val::Optional(None) => return Ok(Val::Optional(None)),
            Val::Optional(Some(of)) => return self.index(of, at, true),
            Val::List(_) | Val::Items(..) => {
                let place = match at {
                    Val::Int(place) => usize::try_from(*place).ok(),
                    Val::Uint(place) => usize::try_from(*place).ok(),
                    Val::Double(place) if place.fract() == 0.0 && *place >= 0.0 && *place < 1e9 => {
                        Some(*place as usize)
                    }
                    _ => return Err(no_place(at)),
                };
                let found = place.map(|place| of.item(place, self)).transpose()?.flatten();
                (found, "index out of bounds")
            }
            Val::Map(_) | Val::Fields(..) => (of.at(at, self)?, "no such key"),
            Val::Struct(..) => return Err(Stop::overload()),
            _ => (None, "no such key"),
        };
        match (found, optional) {
            (found, true) => Val::optional(found),
            (Some(found), false) => Ok(found),
            (None, false) => Err(Stop::new(format_args!("{missing}: {}", library::Shown(at)))),
        }
    }

    /// `&&` and `||`: one part that decides makes up for others that fail.
    fn decided(&mut self, parts: &'a [Expr], decisive: bool) -> Result<Val<'a>, Stop> {
        let mut failed = None;
        for part in parts {
            match self.eval(part) {
                Ok(Val::Bool(value)) if value == decisive => return Ok(Val::Bool(decisive)),
                Ok(Val::Bool(_)) => {}
                Ok(_) => failed = failed.or(Some(Stop::overload())),
                Err(Stop::Cost) => return Err(Stop::Cost),
                Err(stop) => failed = failed.or(Some(stop)),
            }
        }
        failed.map_or(Ok(Val::Bool(!decisive)), Err)
    }

    fn binary(&mut self, operator: Operator, left: &Val<'a>, right: &Val<'a>) -> Result<Val<'a>, Stop> {
        use std::cmp::Ordering;
        let by_order = |run: &mut Self, is: fn(Ordering) -> bool| match left.order(right, run)? {
            Some(order) => Ok(Val::Bool(is(order))),
            None if matches!((left, right), (Val::Double(_), _) | (_, Val::Double(_))) => Ok(Val::Bool(false)),
            None => Err(Stop::overload()),
        };
        match operator {
            Operator::Equal => left.same(right, self).map(Val::Bool),
            Operator::NotEqual => left.same(right, self).map(|same| Val::Bool(!same)),
            Operator::Less => by_order(self, Ordering::is_lt),
            Operator::LessEqual => by_order(self, Ordering::is_le),
            Operator::Greater => by_order(self, Ordering::is_gt),
            Operator::GreaterEqual => by_order(self, Ordering::is_ge),
            Operator::In => match right {
                Val::List(_) | Val::Items(..) => {
                    let items = right.items(self)?.unwrap_or_default();
                    contains(&items, left, self).map(Val::Bool)
                }
                Val::Map(_) | Val::Fields(..) => Ok(Val::Bool(right.at(left, self)?.is_some())),
                _ => Err(Stop::overload()),
            },
            Operator::Add => match (left, right) {
                (Val::Text(a), Val::Text(b)) => {
                    self.spend((a.len() + b.len()) / 10)?;
                    Ok(Val::own([&**a, &**b].concat()))
                }
                (Val::Bytes(a), Val::Bytes(b)) => {
                    self.spend((a.len() + b.len()) / 10)?;
                    Ok(Val::bytes([&**a, &**b].concat()))
                }
                (Val::List(_) | Val::Items(..), Val::List(_) | Val::Items(..)) => {
                    left.joined(right, self)?.ok_or_else(Stop::overload)
                }
                _ => arithmetic(operator, left, right),
            },
            _ => arithmetic(operator, left, right),
        }
    }

    /// The sum of two values.
    pub fn add(&mut self, a: &Val<'a>, b: &Val<'a>) -> Result<Val<'a>, Stop> {
        self.spend(1)?;
        self.binary(Operator::Add, a, b)
    }

    /// The items of a list or the keys of a map, with their places or values; and whether it is a list.
    fn entries(&mut self, over: &Val<'a>) -> Result<(Entries<'a>, bool), Stop> {
        if let Some(items) = over.items(self)? {
            let number = |(at, item)| (Val::Int(i64::try_from(at).unwrap_or(i64::MAX)), item);
            return Ok((Box::new(items.into_iter().enumerate().map(number)), true));
        }
        Ok((Box::new(over.fields(self)?.ok_or_else(Stop::overload)?.into_iter()), false))
    }

    fn repeat(&mut self, of: &'a Loop) -> Result<Val<'a>, Stop> {
        let over = self.eval(&of.over)?;
        let (entries, is_list) = self.entries(&over)?;
        let mut gathered = Box::new(Gathered::default());
        for (key, value) in entries {
            let item = if is_list { value.clone() } else { key.clone() };
            let before = self.slots.len();
            if of.two {
                self.slots.extend([key.clone(), value]);
            } else {
                self.slots.push(item.clone());
            }
            let outcome = self.turn(of);
            self.slots.truncate(before);
            if let Some(decided) = gathered.take(self, of.what, (key, item), outcome)? {
                return Ok(decided);
            }
        }
        gathered.value(self, of.what)
    }

    /// One turn of a loop: what it gives, or `None` when the filter leaves the item out.
    fn turn(&mut self, of: &'a Loop) -> Result<Option<Val<'a>>, Stop> {
        self.spend(1)?;
        if let Some(filter) = &of.filter {
            match self.eval(filter)? {
                Val::Bool(true) => {}
                Val::Bool(false) => return Ok(None),
                _ => return Err(Stop::overload()),
            }
        }
        self.eval(&of.then).map(Some)
    }
}

/// What the turns of a loop gave.
#[derive(Default)]
struct Gathered<'a> {
    list: Vec<Val<'a>>,
    map: Vec<(Val<'a>, Val<'a>)>,
    /// By what they are to be sorted.
    keyed: Vec<(Val<'a>, Val<'a>)>,
    count: usize,
    failed: Option<Stop>,
}

impl<'a> Gathered<'a> {
    /// Takes what a turn gave; `Some` where that decides.
    fn take(
        &mut self,
        run: &mut Run<'a>,
        what: What,
        (key, item): (Val<'a>, Val<'a>),
        outcome: Result<Option<Val<'a>>, Stop>,
    ) -> Result<Option<Val<'a>>, Stop> {
        let made = match outcome {
            Ok(None) => return Ok(None),
            Ok(Some(made)) => made,
            Err(stop @ Stop::Fault(_)) if matches!(what, What::All | What::Exists) => {
                self.failed.get_or_insert(stop);
                return Ok(None);
            }
            Err(stop) => return Err(stop),
        };
        match (what, made) {
            (What::All, Val::Bool(false)) => return Ok(Some(Val::Bool(false))),
            (What::Exists, Val::Bool(true)) => return Ok(Some(Val::Bool(true))),
            (What::ExistsOne, Val::Bool(true)) => self.count += 1,
            (What::Filter, Val::Bool(true)) => self.list.push(item),
            (What::All | What::Exists | What::ExistsOne | What::Filter, Val::Bool(_)) => {}
            (What::All | What::Exists, _) => drop(self.failed.get_or_insert_with(Stop::overload)),
            (What::Map, made) => self.list.push(made),
            (What::Sort, made) => self.keyed.push((made, item)),
            (What::Fields, made) => self.map.push((key, made)),
            (What::Entries, made) => {
                for (key, value) in made.fields(run)?.ok_or_else(Stop::overload)? {
                    run.insert(&mut self.map, key, value)?;
                }
            }
            (What::ExistsOne | What::Filter, _) => return Err(Stop::overload()),
        }
        Ok(None)
    }

    /// What the loop gives.
    fn value(self, run: &mut Run<'a>, what: What) -> Result<Val<'a>, Stop> {
        if let Some(stop) = self.failed {
            return Err(stop);
        }
        match what {
            What::All => Ok(Val::Bool(true)),
            What::Exists => Ok(Val::Bool(false)),
            What::ExistsOne => Ok(Val::Bool(self.count == 1)),
            What::Map | What::Filter => Val::list(self.list),
            What::Sort => Val::list(library::sorted_by(run, self.keyed)?),
            What::Fields | What::Entries => Val::map(self.map),
        }
    }
}

/// The value of a literal.
fn literal_value(expr: &Expr) -> Val<'_> {
    match expr {
        Expr::Bool(value) => Val::Bool(*value),
        Expr::Int(value) => Val::Int(*value),
        Expr::Uint(value) => Val::Uint(*value),
        Expr::Double(value) => Val::Double(*value),
        Expr::Text(value) => Val::Text(Text::Of(value)),
        Expr::Bytes(value) => Val::Bytes(Held::Of(value)),
        Expr::Type(name) => Val::Type(name),
        _ => Val::Null,
    }
}

/// A part of a list, a map or a structure; an optional one may be none.
fn part<'a>(value: Val<'a>, optional: bool) -> Result<Option<Val<'a>>, Stop> {
    match (value, optional) {
        (value, false) => Ok(Some(value)),
        (Val::Optional(value), true) => Ok(value.map(|value| (*value).clone())),
        _ => Err(Stop::overload()),
    }
}

fn arithmetic<'a>(operator: Operator, left: &Val<'a>, right: &Val<'a>) -> Result<Val<'a>, Stop> {
    let overflow =
        || Stop::new(if matches!(left, Val::Uint(_)) { "unsigned integer overflow" } else { "integer overflow" });
    let by_zero = || Stop::new(if operator == Operator::Modulo { "modulus by zero" } else { "division by zero" });
    let nanos = |span: jiff::SignedDuration| i64::try_from(span.as_nanos()).map(Val::Duration).map_err(|_| overflow());
    Ok(match (operator, left, right) {
        (Operator::Add, Val::Int(a), Val::Int(b)) => Val::Int(a.checked_add(*b).ok_or_else(overflow)?),
        (Operator::Subtract, Val::Int(a), Val::Int(b)) => Val::Int(a.checked_sub(*b).ok_or_else(overflow)?),
        (Operator::Multiply, Val::Int(a), Val::Int(b)) => Val::Int(a.checked_mul(*b).ok_or_else(overflow)?),
        (Operator::Divide | Operator::Modulo, Val::Int(_), Val::Int(0)) => return Err(by_zero()),
        (Operator::Divide, Val::Int(a), Val::Int(b)) => Val::Int(a.checked_div(*b).ok_or_else(overflow)?),
        (Operator::Modulo, Val::Int(a), Val::Int(b)) => Val::Int(a.checked_rem(*b).ok_or_else(overflow)?),
        (Operator::Add, Val::Uint(a), Val::Uint(b)) => Val::Uint(a.checked_add(*b).ok_or_else(overflow)?),
        (Operator::Subtract, Val::Uint(a), Val::Uint(b)) => Val::Uint(a.checked_sub(*b).ok_or_else(overflow)?),
        (Operator::Multiply, Val::Uint(a), Val::Uint(b)) => Val::Uint(a.checked_mul(*b).ok_or_else(overflow)?),
        (Operator::Divide, Val::Uint(a), Val::Uint(b)) => Val::Uint(a.checked_div(*b).ok_or_else(by_zero)?),
        (Operator::Modulo, Val::Uint(a), Val::Uint(b)) => Val::Uint(a.checked_rem(*b).ok_or_else(by_zero)?),
        (Operator::Add, Val::Double(a), Val::Double(b)) => Val::Double(a + b),
        (Operator::Subtract, Val::Double(a), Val::Double(b)) => Val::Double(a - b),
        (Operator::Multiply, Val::Double(a), Val::Double(b)) => Val::Double(a * b),
        (Operator::Divide, Val::Double(a), Val::Double(b)) => Val::Double(a / b),
        (Operator::Add, Val::Duration(a), Val::Duration(b)) => Val::Duration(a.checked_add(*b).ok_or_else(overflow)?),
        (Operator::Subtract, Val::Duration(a), Val::Duration(b)) => {
            Val::Duration(a.checked_sub(*b).ok_or_else(overflow)?)
        }
        (Operator::Add, Val::Timestamp(time), Val::Duration(span))
        | (Operator::Add, Val::Duration(span), Val::Timestamp(time)) => {
            Val::Timestamp(time.checked_add(jiff::SignedDuration::from_nanos(*span)).map_err(|_| overflow())?)
        }
        (Operator::Subtract, Val::Timestamp(time), Val::Duration(span)) => {
            Val::Timestamp(time.checked_sub(jiff::SignedDuration::from_nanos(*span)).map_err(|_| overflow())?)
        }
        (Operator::Subtract, Val::Timestamp(a), Val::Timestamp(b)) => nanos(a.duration_since(*b))?,
        _ => return Err(Stop::overload()),
    })
}
