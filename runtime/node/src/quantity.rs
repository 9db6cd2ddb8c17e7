//! Quantities of resource limits as numbers.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// The value in thousandths, rounded up; `None` when the text is no quantity or does not fit.
pub fn millis(quantity: &Quantity) -> Option<u64> {
    scaled(&quantity.0, 1000)
}

/// The value in whole units, rounded up.
pub fn units(quantity: &Quantity) -> Option<u64> {
    scaled(&quantity.0, 1)
}

/// `value / divisor`, rounded up, both as they are written.
pub fn divided(value: &Quantity, divisor: &Quantity) -> Option<u64> {
    let (numerator, below) = fraction(&value.0)?;
    let (divisor, above) = fraction(&divisor.0)?;
    let numerator = numerator.checked_mul(above)?;
    let denominator = below.checked_mul(divisor)?;
    if denominator == 0 {
        return None;
    }
    u64::try_from(numerator.div_ceil(denominator)).ok()
}

fn scaled(text: &str, scale: u128) -> Option<u64> {
    let (numerator, denominator) = fraction(text)?;
    u64::try_from(numerator.checked_mul(scale)?.div_ceil(denominator)).ok()
}

/// The value as numerator and denominator; negative quantities do not occur in resources.
fn fraction(text: &str) -> Option<(u128, u128)> {
    let text = text.strip_prefix('+').unwrap_or(text);
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits);
    let (whole, decimals) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && decimals.is_empty() {
        return None;
    }
    let mantissa: u128 = format!("{whole}{decimals}").parse().ok()?;
    let below = 10_u128.checked_pow(u32::try_from(decimals.len()).ok()?)?;
    let power = |base: u128, exponent: u32| base.checked_pow(exponent);
    let (up, down) = match suffix {
        "" => (1, 1),
        "n" => (1, power(10, 9)?),
        "u" => (1, power(10, 6)?),
        "m" => (1, 1000),
        "k" => (1000, 1),
        "M" => (power(10, 6)?, 1),
        "G" => (power(10, 9)?, 1),
        "T" => (power(10, 12)?, 1),
        "P" => (power(10, 15)?, 1),
        "E" => (power(10, 18)?, 1),
        "Ki" => (1 << 10, 1),
        "Mi" => (1 << 20, 1),
        "Gi" => (1 << 30, 1),
        "Ti" => (1 << 40, 1),
        "Pi" => (1 << 50, 1),
        "Ei" => (1 << 60, 1),
        exponent => {
            let exponent: i32 = exponent.strip_prefix(['e', 'E'])?.parse().ok()?;
            match exponent {
                0.. => (power(10, exponent.unsigned_abs())?, 1),
                _ => (1, power(10, exponent.unsigned_abs())?),
            }
        }
    };
    Some((mantissa.checked_mul(up)?, below.checked_mul(down)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_kubernetes_writes() {
        for (text, expected) in [
            ("1", Some(1000)),
            ("250m", Some(250)),
            ("1.5", Some(1500)),
            ("100u", Some(1)),
            ("2Ki", Some(2_048_000)),
            ("1e3", Some(1_000_000)),
            ("5E-1", Some(500)),
            (".5", Some(500)),
            ("x", None),
            ("", None),
            ("1e99", None),
        ] {
            assert_eq!(millis(&Quantity(text.to_owned())), expected, "{text}");
        }
        assert_eq!(units(&Quantity("128Mi".to_owned())), Some(128 << 20));
        for (value, divisor, expected) in
            [("250m", "1", 1), ("250m", "1m", 250), ("64Mi", "1Mi", 64), ("65Mi", "1Gi", 1)]
        {
            assert_eq!(divided(&Quantity(value.to_owned()), &Quantity(divisor.to_owned())), Some(expected));
        }
    }
}
