//! Evaluates programs. Every step has a cost, about what Kubernetes counts, so that the time and the memory that a rule can
//! take are bounded whatever it says and whatever it is asked about.

use std::rc::Rc;

use super::authority::Authorizer;
use super::library;
use super::parse::Operator;
use super::program::{Expr, Loop, What};
use super::value::{Text, Val, contains};

/// Why an evaluation has no value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Stop {
    /// It costs more than it may.
    Cost,
    Fault(String),
}

impl Stop {
    pub fn new(message: &str) -> Stop {
        Stop::Fault(message.to_owned())
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
    /// What this one still may.
    left: usize,
    /// What all of them still may.
    pool: usize,
    asked: usize,
    /// What the kept values of variables have cost.
    kept: usize,
    /// Who answers what is asked of `authorizer`.
    pub authorizer: Option<&'a dyn Authorizer>,
    /// What is declared, and what it gave once somebody asked.
    variables: Vec<Variable<'a>>,
}

/// A declared expression.
struct Variable<'a> {
    name: &'a str,
    program: &'a Expr,
    value: Option<Result<Val<'a>, Stop>>,
}

/// Units that the values of declared expressions may have cost that are kept: each stands for some fifty bytes at most.
const KEPT_MAX: usize = 1_500_000;

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
            left: limit.min(pool),
            pool,
            asked: pool,
            authorizer: None,
            variables: Vec::new(),
            kept: 0,
        }
    }

    /// The value of a program for these variables.
    pub fn program(&mut self, program: &'a Expr, slots: Vec<Val<'a>>) -> Result<Val<'a>, Stop> {
        self.set(slots);
        self.eval(program)
    }

    /// The value of a further program for the same variables, which may cost as much as one may.
    pub fn further(&mut self, program: &'a Expr) -> Result<Val<'a>, Stop> {
        self.left = self.limit.min(self.pool);
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
        // It sees the places of the beginning, not those of loops around, and costs as a program of its own.
        let around = self.slots.split_off(self.base.min(self.slots.len()));
        let (left, pool) = (self.left, self.pool);
        self.left = self.limit.min(self.pool);
        let value = match self.eval(program) {
            Err(Stop::Fault(words)) => {
                Err(Stop::Fault(format!("composited variable \"{name}\" fails to evaluate: {words}")))
            }
            value => value,
        };
        self.left = left.min(self.pool);
        self.slots.truncate(self.base);
        self.slots.extend(around);
        // One that was cut short may have a value where more is left; one that is large is made again.
        let cost = pool - self.pool;
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

    pub fn eval(&mut self, expr: &'a Expr) -> Result<Val<'a>, Stop> {
        Ok(match expr {
            Expr::Null => Val::Null,
            Expr::Bool(value) => Val::Bool(*value),
            Expr::Int(value) => Val::Int(*value),
            Expr::Uint(value) => Val::Uint(*value),
            Expr::Double(value) => Val::Double(*value),
            Expr::Text(value) => Val::Text(Text::Of(value)),
            Expr::Bytes(value) => Val::Bytes(value.as_slice().into()),
            Expr::Type(name) => Val::Type(name),
            Expr::Slot(at) => {
                self.spend(1)?;
                self.slots.get(*at).cloned().ok_or_else(|| Stop::new("no such attribute"))?
            }
            Expr::Variable(at) => {
                self.spend(1)?;
                self.variable(*at)?
            }
            Expr::Declared(at) => {
                self.variable(*at)?;
                Val::Bool(true)
            }
            Expr::Struct(name, fields) => {
                self.spend(40)?;
                let mut made = Vec::with_capacity(fields.len());
                for (field, value, optional) in fields {
                    match (self.eval(value)?, optional) {
                        (value, false) => made.push((field.as_str(), value)),
                        (Val::Optional(value), true) => {
                            made.extend(value.map(|value| (field.as_str(), (*value).clone())));
                        }
                        _ => return Err(Stop::overload()),
                    }
                }
                Val::Struct(name, Rc::new(made))
            }
            Expr::Select(of, field, optional) => {
                let of = self.eval(of)?;
                self.select(&of, field, *optional)?
            }
            Expr::Has(of, field) => {
                let of = self.eval(of)?;
                self.spend(1)?;
                let of = match of {
                    Val::Optional(None) => return Ok(Val::Bool(false)),
                    Val::Optional(Some(of)) => (*of).clone(),
                    of => of,
                };
                match of {
                    Val::Fields(..) | Val::Struct(..) => Val::Bool(of.field(field, self)?.is_some()),
                    Val::Map(_) => Val::Bool(of.at(&Val::own(field.as_str()), self)?.is_some()),
                    _ => return Err(Stop::overload()),
                }
            }
            Expr::Index(of, at, optional) => {
                let (of, at) = (self.eval(of)?, self.eval(at)?);
                self.index(&of, &at, *optional)?
            }
            Expr::Call(name, arguments) => {
                let mut given = Vec::with_capacity(arguments.len());
                for argument in arguments {
                    given.push(self.eval(argument)?);
                }
                self.spend(1)?;
                library::call(self, name, &given)?
            }
            Expr::Matches(of, pattern) => {
                let Val::Text(text) = self.eval(of)? else { return Err(Stop::overload()) };
                self.spend(pattern.cost(text.len()) + text.len() / 10)?;
                Val::Bool(pattern.matches(&text))
            }
            Expr::List(items) => {
                self.spend(10)?;
                let mut made = Vec::with_capacity(items.len());
                for (item, optional) in items {
                    match (self.eval(item)?, optional) {
                        (value, false) => made.push(value),
                        (Val::Optional(value), true) => made.extend(value.map(|value| (*value).clone())),
                        _ => return Err(Stop::overload()),
                    }
                }
                Val::list(made)
            }
            Expr::Map(fields) => {
                self.spend(30)?;
                let mut made = Vec::with_capacity(fields.len());
                for (key, value, optional) in fields {
                    let key = self.eval(key)?;
                    match (self.eval(value)?, optional) {
                        (value, false) => self.insert(&mut made, key, value)?,
                        (Val::Optional(None), true) => {}
                        (Val::Optional(Some(value)), true) => self.insert(&mut made, key, (*value).clone())?,
                        _ => return Err(Stop::overload()),
                    }
                }
                Val::Map(Rc::new(made))
            }
            Expr::All(parts) => return self.decided(parts, false),
            Expr::Any(parts) => return self.decided(parts, true),
            Expr::Not(of) => match self.eval(of)? {
                Val::Bool(value) => Val::Bool(!value),
                _ => return Err(Stop::overload()),
            },
            Expr::Negative(of) => {
                self.spend(1)?;
                match self.eval(of)? {
                    Val::Int(value) => Val::Int(value.checked_neg().ok_or_else(|| Stop::new("integer overflow"))?),
                    Val::Double(value) => Val::Double(-value),
                    _ => return Err(Stop::overload()),
                }
            }
            Expr::Either(condition, yes, no) => match self.eval(condition)? {
                Val::Bool(true) => return self.eval(yes),
                Val::Bool(false) => return self.eval(no),
                _ => return Err(Stop::overload()),
            },
            Expr::Binary(operator, left, right) => {
                let (left, right) = (self.eval(left)?, self.eval(right)?);
                self.spend(1)?;
                self.binary(*operator, &left, &right)?
            }
            Expr::Loop(of) => return self.repeat(of),
            Expr::Chain { of, then, flat } => match self.eval(of)? {
                Val::Optional(None) => Val::Optional(None),
                Val::Optional(Some(value)) => {
                    let value = self.with([(*value).clone()], |run| run.eval(then))?;
                    if *flat { value } else { Val::some(value) }
                }
                _ => return Err(Stop::overload()),
            },
            Expr::Bind(part, whole) => {
                let part = self.eval(part)?;
                self.with([part], |run| run.eval(whole))?
            }
        })
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

    /// Evaluates with further variables.
    fn with<const N: usize>(
        &mut self,
        values: [Val<'a>; N],
        work: impl FnOnce(&mut Self) -> Result<Val<'a>, Stop>,
    ) -> Result<Val<'a>, Stop> {
        let before = self.slots.len();
        self.slots.extend(values);
        let value = work(self);
        self.slots.truncate(before);
        value
    }

    fn select(&mut self, of: &Val<'a>, field: &str, optional: bool) -> Result<Val<'a>, Stop> {
        self.spend(1)?;
        if let Val::Optional(of) = of {
            return match of {
                None => Ok(Val::Optional(None)),
                Some(of) => self.select(of, field, true),
            };
        }
        let found = match of {
            Val::Fields(..) | Val::Struct(..) => of.field(field, self)?,
            Val::Map(_) => of.at(&Val::own(field), self)?,
            // As cel-go says it of what has no fields.
            _ => None,
        };
        match (found, optional) {
            (found, true) => Ok(Val::Optional(found.map(Rc::new))),
            (Some(found), false) => Ok(found),
            (None, false) => Err(Stop::new(&format!("no such key: {field}"))),
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
                    _ => return Err(Stop::overload()),
                };
                let found = place.map(|place| of.item(place, self)).transpose()?.flatten();
                (found, "index out of bounds")
            }
            Val::Map(_) | Val::Fields(..) => (of.at(at, self)?, "no such key"),
            _ => return Err(Stop::overload()),
        };
        match (found, optional) {
            (found, true) => Ok(Val::Optional(found.map(Rc::new))),
            (Some(found), false) => Ok(found),
            (None, false) => Err(Stop::new(&format!("{missing}: {}", library::shown(at)))),
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
                    Ok(Val::Bytes([&**a, &**b].concat().into()))
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

    /// The items of a list or the keys of a map, with their places or values.
    fn entries(&mut self, over: &Val<'a>) -> Result<(Vec<(Val<'a>, Val<'a>)>, bool), Stop> {
        if let Some(items) = over.items(self)? {
            let number = |(at, item)| (Val::Int(i64::try_from(at).unwrap_or(i64::MAX)), item);
            return Ok((items.into_iter().enumerate().map(number).collect(), true));
        }
        Ok((over.fields(self)?.ok_or_else(Stop::overload)?, false))
    }

    fn repeat(&mut self, of: &'a Loop) -> Result<Val<'a>, Stop> {
        let over = self.eval(&of.over)?;
        let (entries, is_list) = self.entries(&over)?;
        let (mut list, mut map, mut count, mut failed) = (Vec::new(), Vec::new(), 0_usize, None);
        let mut keyed: Vec<(Val<'a>, Val<'a>)> = Vec::new();
        for (key, value) in entries {
            self.spend(1)?;
            let item = if is_list { value.clone() } else { key.clone() };
            let before = self.slots.len();
            if of.two {
                self.slots.extend([key.clone(), value]);
            } else {
                self.slots.push(item.clone());
            }
            let outcome = self.turn(of);
            self.slots.truncate(before);
            let made = match outcome {
                Ok(None) => continue,
                Ok(Some(made)) => made,
                Err(stop @ Stop::Fault(_)) if matches!(of.what, What::All | What::Exists) => {
                    failed = failed.or(Some(stop));
                    continue;
                }
                Err(stop) => return Err(stop),
            };
            match (of.what, made) {
                (What::All, Val::Bool(false)) => return Ok(Val::Bool(false)),
                (What::Exists, Val::Bool(true)) => return Ok(Val::Bool(true)),
                (What::ExistsOne, Val::Bool(true)) => count += 1,
                (What::Filter, Val::Bool(true)) => list.push(item),
                (What::All | What::Exists | What::ExistsOne | What::Filter, Val::Bool(_)) => {}
                (What::All | What::Exists, _) => failed = failed.or(Some(Stop::overload())),
                (What::Map, made) => list.push(made),
                (What::Sort, made) => keyed.push((made, item)),
                (What::Fields, made) => map.push((key, made)),
                (What::Entries, made) => {
                    for (key, value) in made.fields(self)?.ok_or_else(Stop::overload)? {
                        self.insert(&mut map, key, value)?;
                    }
                }
                (What::ExistsOne | What::Filter, _) => return Err(Stop::overload()),
            }
        }
        if let Some(stop) = failed {
            return Err(stop);
        }
        Ok(match of.what {
            What::All => Val::Bool(true),
            What::Exists => Val::Bool(false),
            What::ExistsOne => Val::Bool(count == 1),
            What::Map | What::Filter => Val::list(list),
            What::Sort => Val::list(library::sorted_by(self, keyed)?),
            What::Fields | What::Entries => Val::Map(Rc::new(map)),
        })
    }

    /// One turn of a loop: what it gives, or `None` when the filter leaves the item out.
    fn turn(&mut self, of: &'a Loop) -> Result<Option<Val<'a>>, Stop> {
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
