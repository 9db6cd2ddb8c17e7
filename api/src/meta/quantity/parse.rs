//! Reading quantities.

use std::str::FromStr;

use super::{Format, NANO, Quantity, QuantityError, raise};

/// Digits of the reference's fast path. It matters because what fits there keeps its spelling.
const FAST_DIGITS: usize = 18;

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
        let keeps_text = is_fast
            && fits
            && mantissa != 0
            && match base {
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
}
