//! Quantities: `250m`, `1.5Gi`, `1e3`, as numbers without rounding.
//!
//! A value is an integer times a power of ten (powers of two are multiplied out), so sums and comparisons are exact up
//! to 38 digits. What was read is printed in the same family of suffixes in which it was written
//! (`k8s.io/apimachinery/pkg/api/resource`).

mod parse;

use std::cmp::Ordering;
use std::fmt;
use std::iter::Sum;
use std::ops::{Add, AddAssign, Neg, Sub, SubAssign};

use serde_json::Value;

/// Smallest power of ten that is kept; smaller parts are rounded away from zero.
const NANO: i32 = -9;

/// A quantity.
#[derive(Debug, Clone)]
pub struct Quantity {
    mantissa: i128,
    /// Power of ten.
    scale: i32,
    format: Format,
    /// The spelling, when the reference keeps it although it is not the canonical one (`1.500`, `+1`).
    text: Option<Box<str>>,
}

/// The family of suffixes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `12e6`
    DecimalExponent,
    /// `12Mi`
    BinarySi,
    /// `12M`
    DecimalSi,
}

/// Why a text is no quantity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// It has not the form.
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Form,
    /// The number is none, or has more than 38 digits.
    #[error("unable to parse numeric part of quantity")]
    Number,
    /// The suffix is none.
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

impl Quantity {
    /// Reads a quantity of JSON: a text (spaces around are dropped) or a number.
    pub fn from_json(value: &Value) -> Result<Self, QuantityError> {
        match value {
            Value::String(text) => Self::parse(text.trim()),
            Value::Number(number) => Self::parse(&number.to_string()),
            _ => Err(QuantityError::Form),
        }
    }

    const fn of(mantissa: i128, scale: i32, format: Format) -> Self {
        Self { mantissa, scale, format, text: None }
    }

    /// Nothing.
    pub const ZERO: Self = Self::of(0, 0, Format::DecimalSi);

    /// Whole units.
    pub const fn from_units(value: i64, format: Format) -> Self {
        Self::of(value as i128, 0, format)
    }

    /// Thousandths.
    pub const fn from_millis(value: i64, format: Format) -> Self {
        Self::of(value as i128, -3, format)
    }

    /// Thousand-millionths, the smallest that is kept.
    pub const fn from_nanos(value: i64, format: Format) -> Self {
        Self::of(value as i128, NANO, format)
    }

    /// Its family of suffixes.
    pub const fn format(&self) -> Format {
        self.format
    }

    /// Whether it is nothing.
    pub const fn is_zero(&self) -> bool {
        self.mantissa == 0
    }

    /// -1, 0 or 1.
    pub const fn signum(&self) -> i32 {
        self.mantissa.signum() as i32
    }

    /// In whole units, rounded away from zero; the nearest i64 when it does not fit.
    pub fn value(&self) -> i64 {
        self.scaled(0)
    }

    /// In thousandths, rounded away from zero; the nearest i64 when it does not fit.
    pub fn milli_value(&self) -> i64 {
        self.scaled(-3)
    }

    /// In units of `10^scale`, rounded away from zero; the nearest i64 when it does not fit.
    pub fn scaled(&self, scale: i32) -> i64 {
        let (mantissa, from) = raise(self.mantissa, self.scale, scale, false);
        let limit = if mantissa < 0 { i64::MIN } else { i64::MAX };
        let all = power(from - scale).and_then(|factor| mantissa.checked_mul(factor));
        match mantissa {
            0 => 0,
            _ => all.and_then(|all| i64::try_from(all).ok()).unwrap_or(limit),
        }
    }

    /// Rounds away from zero to a multiple of `10^scale`; the canonical resources are kept in thousandths.
    pub fn round_up(&mut self, scale: i32) {
        if self.scale < scale {
            self.text = None;
            (self.mantissa, self.scale) = raise(self.mantissa, self.scale, scale, false);
        }
    }

    /// Nearly.
    pub fn as_f64(&self) -> f64 {
        self.mantissa as f64 * 10_f64.powi(self.scale)
    }

    /// Multiplies; digits beyond the 38th are lost.
    pub fn times(&self, factor: i64) -> Self {
        let mut result = Self::of(self.mantissa, self.scale, self.format);
        loop {
            match result.mantissa.checked_mul(i128::from(factor)) {
                Some(mantissa) => return Self { mantissa, ..result },
                None => (result.mantissa, result.scale) = raise(result.mantissa, result.scale, result.scale + 1, false),
            }
        }
    }

    /// Without trailing zeros in the mantissa.
    fn reduced(&self) -> (i128, i32) {
        let (mut mantissa, mut scale) = (self.mantissa, self.scale);
        while mantissa != 0 && mantissa % 10 == 0 {
            mantissa /= 10;
            scale += 1;
        }
        (mantissa, if mantissa == 0 { 0 } else { scale })
    }

    fn plus(&self, other: &Self, sign: i128) -> Self {
        let format = if self.is_zero() { other.format } else { self.format };
        let ((mut a, mut a_scale), (mut b, mut b_scale)) = (self.reduced(), other.reduced());
        b *= sign;
        // Zero has any scale.
        if a == 0 {
            a_scale = b_scale;
        } else if b == 0 {
            b_scale = a_scale;
        }
        loop {
            let scale = a_scale.min(b_scale);
            let lower = |m: i128, from: i32| power(from - scale).and_then(|factor| m.checked_mul(factor));
            let sum = lower(a, a_scale).zip(lower(b, b_scale)).and_then(|(a, b)| a.checked_add(b));
            if let Some(sum) = sum {
                return Self::of(sum, scale, format);
            }
            // More than 38 digits apart: the smaller one loses its last ones.
            let to = scale + (a_scale.abs_diff(b_scale) as i32 - 38).max(1);
            (a, a_scale) = raise(a, a_scale, to, false);
            (b, b_scale) = raise(b, b_scale, to, false);
        }
    }
}

fn power(exponent: i32) -> Option<i128> {
    10_i128.checked_pow(u32::try_from(exponent).ok()?)
}

/// The same number at a scale of at least `least`, rounded away from zero (`cut` says that digits are already lost).
fn raise(mantissa: i128, scale: i32, least: i32, cut: bool) -> (i128, i32) {
    if scale >= least {
        return (mantissa + if cut { mantissa.signum() | 1 } else { 0 }, scale);
    }
    let Some(divisor) = power(least - scale) else {
        let lost = mantissa != 0 || cut;
        return (if lost { mantissa.signum() | 1 } else { 0 }, least);
    };
    let inexact = cut || mantissa % divisor != 0;
    let away = if mantissa < 0 { -1 } else { 1 };
    (mantissa / divisor + if inexact { away } else { 0 }, least)
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// By value: `1` is `1000m`.
impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        if self.scale == other.scale {
            return self.mantissa.cmp(&other.mantissa);
        }
        let ((a, a_scale), (b, b_scale)) = (self.reduced(), other.reduced());
        let signs = a.signum().cmp(&b.signum());
        if signs != Ordering::Equal || a == 0 {
            return signs;
        }
        let lower = |m: i128, by: i32| power(by).and_then(|factor| m.checked_mul(factor));
        let aligned = match a_scale.cmp(&b_scale) {
            Ordering::Equal => Some((a, b)),
            Ordering::Greater => lower(a, a_scale - b_scale).map(|a| (a, b)),
            Ordering::Less => lower(b, b_scale - a_scale).map(|b| (a, b)),
        };
        match aligned {
            Some((a, b)) => a.cmp(&b),
            // One that cannot be written at the other's scale is beyond it.
            None if (a_scale > b_scale) == (a > 0) => Ordering::Greater,
            None => Ordering::Less,
        }
    }
}

/// Canonical: no precision lost, no fraction, the largest suffix. What was read may keep its spelling.
impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(text) = &self.text {
            return f.write_str(text);
        }
        let (mut mantissa, mut scale) = self.reduced();
        if mantissa == 0 {
            return f.write_str("0");
        }
        let whole = power(scale).and_then(|factor| mantissa.checked_mul(factor));
        if let (Format::BinarySi, Some(mut whole)) = (self.format, whole)
            && whole.abs() >= 1024
        {
            let mut times = 0;
            while whole % 1024 == 0 && times < 6 {
                whole /= 1024;
                times += 1;
            }
            return write!(f, "{whole}{}", ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"][times]);
        }
        while scale % 3 != 0 {
            match mantissa.checked_mul(10) {
                Some(more) => (mantissa, scale) = (more, scale - 1),
                None => break,
            }
        }
        let suffix = match (self.format, scale) {
            (_, 0) => "",
            (Format::DecimalExponent, _) => return write!(f, "{mantissa}e{scale}"),
            (_, -9) => "n",
            (_, -6) => "u",
            (_, -3) => "m",
            (_, 3) => "k",
            (_, 6) => "M",
            (_, 9) => "G",
            (_, 12) => "T",
            (_, 15) => "P",
            (_, 18) => "E",
            // The reference prints no suffix at all here, which is another number.
            _ => return write!(f, "{mantissa}e{scale}"),
        };
        write!(f, "{mantissa}{suffix}")
    }
}

/// An empty sum takes the family of what is added first.
impl Add for &Quantity {
    type Output = Quantity;

    fn add(self, other: &Quantity) -> Quantity {
        self.plus(other, 1)
    }
}

impl Sub for &Quantity {
    type Output = Quantity;

    fn sub(self, other: &Quantity) -> Quantity {
        self.plus(other, -1)
    }
}

impl AddAssign<&Quantity> for Quantity {
    fn add_assign(&mut self, other: &Quantity) {
        *self = self.plus(other, 1);
    }
}

impl SubAssign<&Quantity> for Quantity {
    fn sub_assign(&mut self, other: &Quantity) {
        *self = self.plus(other, -1);
    }
}

impl Neg for Quantity {
    type Output = Self;

    fn neg(self) -> Self {
        Self::of(-self.mantissa, self.scale, self.format)
    }
}

impl<'a> Sum<&'a Quantity> for Quantity {
    fn sum<I: Iterator<Item = &'a Quantity>>(all: I) -> Self {
        all.fold(Self::ZERO, |sum, one| &sum + one)
    }
}

#[cfg(test)]
mod tests;
