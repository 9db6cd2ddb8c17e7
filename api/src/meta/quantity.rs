//! Quantities: `250m`, `1.5Gi`, `1e3`, as numbers without rounding.
//!
//! A value is an integer times a power of ten (powers of two are multiplied out), so sums and comparisons are exact up
//! to 38 digits. What was read is printed in the same family of suffixes in which it was written
//! (`k8s.io/apimachinery/pkg/api/resource`).

use std::cmp::Ordering;
use std::fmt;
use std::iter::Sum;
use std::ops::{Add, AddAssign, Neg, Sub, SubAssign};
use std::str::FromStr;

use serde_json::Value;

/// Smallest power of ten that is kept; smaller parts are rounded away from zero.
const NANO: i32 = -9;
/// Digits of the reference's fast path. It matters because what fits there keeps its spelling.
const FAST_DIGITS: usize = 18;

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

/// The parts of a text.
struct Parts<'a> {
    negative: bool,
    /// Digits before the point without leading zeros, `0` when there are none.
    whole: &'a str,
    /// Digits after the point.
    decimals: &'a str,
    suffix: &'a str,
    /// Whether there is any digit.
    has_digits: bool,
}

fn split(text: &str) -> Result<Parts<'_>, QuantityError> {
    let (negative, unsigned) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        Some(_) => (false, text),
        None => return Err(QuantityError::Form),
    };
    let digits = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
    let (all, rest) = unsigned.split_at(digits(unsigned));
    let whole = match all.trim_start_matches('0') {
        "" => "0",
        whole => whole,
    };
    let (decimals, suffix) = match rest.strip_prefix('.') {
        Some(rest) => rest.split_at(digits(rest)),
        None => ("", rest),
    };
    let letters = suffix.bytes().take_while(|b| b"eEinumkKMGTP".contains(b)).count();
    let exponent = &suffix[letters..];
    let exponent = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
    if digits(exponent) != exponent.len() {
        return Err(QuantityError::Form);
    }
    // A lone sign is zero in the reference too.
    let has_digits = !(all.is_empty() && decimals.is_empty()) || rest.is_empty();
    Ok(Parts { negative, whole, decimals, suffix, has_digits })
}

/// Base 2 or 10, exponent, family.
fn interpret(suffix: &str) -> Option<(u32, i32, Format)> {
    Some(match suffix {
        "" => (10, 0, Format::DecimalSi),
        "n" => (10, -9, Format::DecimalSi),
        "u" => (10, -6, Format::DecimalSi),
        "m" => (10, -3, Format::DecimalSi),
        "k" => (10, 3, Format::DecimalSi),
        "M" => (10, 6, Format::DecimalSi),
        "G" => (10, 9, Format::DecimalSi),
        "T" => (10, 12, Format::DecimalSi),
        "P" => (10, 15, Format::DecimalSi),
        "E" => (10, 18, Format::DecimalSi),
        "Ki" => (2, 10, Format::BinarySi),
        "Mi" => (2, 20, Format::BinarySi),
        "Gi" => (2, 30, Format::BinarySi),
        "Ti" => (2, 40, Format::BinarySi),
        "Pi" => (2, 50, Format::BinarySi),
        "Ei" => (2, 60, Format::BinarySi),
        _ => {
            let exponent: i64 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            // Beyond a billion nothing can be said exactly anyway.
            (10, exponent.clamp(-1_000_000_000, 1_000_000_000) as i32, Format::DecimalExponent)
        }
    })
}

impl FromStr for Quantity {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        Self::parse(text)
    }
}

impl Quantity {
    /// Reads a quantity; spaces are not allowed.
    pub fn parse(text: &str) -> Result<Self, QuantityError> {
        let Parts { negative, whole, decimals, suffix, has_digits } = split(text)?;
        let (base, exponent, mut format) = interpret(suffix).ok_or(QuantityError::Suffix)?;
        let digits = whole.len() + decimals.len();
        let is_fast = match base {
            2 => decimals.is_empty() && 14 >= whole.len() + exponent as usize * 3 / 10,
            _ => digits <= FAST_DIGITS && exponent - decimals.len() as i32 >= NANO,
        };
        if !is_fast && !has_digits {
            return Err(QuantityError::Number);
        }
        // What is below a nano is rounded up, so digits far behind are of no use but for that.
        let kept = decimals.len().min(37_usize.saturating_sub(whole.len()));
        let mut mantissa: i128 = format!("{whole}{}", &decimals[..kept]).parse().map_err(|_| QuantityError::Number)?;
        let mut scale = -(kept as i32);
        let cut = decimals[kept..].bytes().any(|digit| digit != b'0');
        match base {
            2 => mantissa = mantissa.checked_mul(1 << exponent).ok_or(QuantityError::Number)?,
            _ => scale += exponent,
        }
        if mantissa != 0 || cut {
            (mantissa, scale) = raise(mantissa, scale, NANO, cut);
        }
        if format == Format::BinarySi {
            let most = i128::from(i64::MAX);
            let value = Self::of(mantissa, scale, format);
            if value > Self::of(most, 0, format) {
                (mantissa, scale) = (most, 0);
            }
            if mantissa != 0 && value < Self::of(1, 0, format) {
                format = Format::DecimalSi;
            }
        }
        let fits = i64::try_from(mantissa).is_ok();
        let keeps_text = is_fast && fits && mantissa != 0 && match base {
            2 => (mantissa >> exponent).trailing_zeros() < 3,
            _ => {
                let first = if whole == "0" && !decimals.is_empty() { b'0' } else { whole.as_bytes()[0] };
                let all = [whole, decimals].concat();
                scale % 3 == 0 && first != b'0' && !all.ends_with("000")
            }
        };
        let mut quantity = Self::of(if negative { -mantissa } else { mantissa }, scale, format);
        if keeps_text && quantity.to_string() != text {
            quantity.text = Some(text.into());
        }
        Ok(quantity)
    }

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
mod tests {
    use super::*;

    fn read(text: &str) -> Quantity {
        Quantity::parse(text).unwrap()
    }

    #[test]
    fn prints_what_kubernetes_prints() {
        for (text, expected) in [
            ("0", "0"),
            ("1", "1"),
            ("1000m", "1"),
            ("1.5", "1500m"),
            ("0.1m", "100u"),
            ("0.0001m", "100n"),
            ("0.00000000001", "1n"),
            ("-0.00000000001", "-1n"),
            ("1.5Gi", "1536Mi"),
            ("1024Ki", "1Mi"),
            ("1024", "1024"),
            ("1000", "1k"),
            ("1e3", "1e3"),
            ("1000e3", "1e6"),
            ("12E6", "12E6"),
            ("100e-3", "100e-3"),
            ("0.5Ki", "512"),
            ("0.5Mi", "512Ki"),
            ("0.1Ki", "102400m"),
            ("1.1Ki", "1126400m"),
            ("1.500", "1.500"),
            ("1.000", "1"),
            ("+1", "+1"),
            ("007", "007"),
            ("-5Mi", "-5Mi"),
            (".5", "500m"),
            ("5.", "5."),
            ("128974848", "128974848"),
            ("129e6", "129e6"),
            ("100Ei", "9223372036854775807"),
            ("1e99", "1e99"),
            ("12345678901234567890123", "12345678901234567890123"),
            ("-", "0"),
        ] {
            assert_eq!(read(text).to_string(), expected, "{text}");
        }
        for (text, error) in [
            ("", QuantityError::Form),
            ("x", QuantityError::Form),
            ("1 ", QuantityError::Form),
            ("1.2.3", QuantityError::Form),
            ("1Kx", QuantityError::Form),
            ("1KiB", QuantityError::Form),
            ("1mm", QuantityError::Suffix),
            ("1ki", QuantityError::Suffix),
            ("1e", QuantityError::Suffix),
            ("1é", QuantityError::Form),
        ] {
            assert_eq!(Quantity::parse(text).unwrap_err(), error, "{text}");
        }
    }

    #[test]
    fn calculates_exactly() {
        for (a, b, sum, difference) in [
            ("1", "250m", "1250m", "750m"),
            ("1Gi", "1Mi", "1025Mi", "1023Mi"),
            ("0", "1Mi", "1Mi", "-1Mi"),
            ("1Mi", "1m", "1048576001m", "1048575999m"),
            ("1e3", "1", "1001", "999"),
        ] {
            assert_eq!((&read(a) + &read(b)).to_string(), sum, "{a} + {b}");
            assert_eq!((&read(a) - &read(b)).to_string(), difference, "{a} - {b}");
        }
        for (a, order, b) in [
            ("1", Ordering::Equal, "1000m"),
            ("1Ki", Ordering::Greater, "1k"),
            ("1e99", Ordering::Greater, "1"),
            ("-1e99", Ordering::Less, "1n"),
            ("1n", Ordering::Less, "1e99"),
            ("0", Ordering::Less, "1n"),
        ] {
            assert_eq!(read(a).cmp(&read(b)), order, "{a} {b}");
        }
        for (text, value, milli) in
            [("1n", 1, 1), ("1500m", 2, 1500), ("-1500m", -2, -1500), ("1Ki", 1024, 1_024_000), ("1e99", i64::MAX, i64::MAX)]
        {
            assert_eq!((read(text).value(), read(text).milli_value()), (value, milli), "{text}");
        }
        assert_eq!(read("100m").times(3).to_string(), "300m");
        let _far = &read("1e99") + &read("1n");
    }
}
