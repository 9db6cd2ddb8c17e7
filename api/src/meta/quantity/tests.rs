//! Quantities as the reference reads, prints, adds and compares them.

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
    for (text, value, milli) in [
        ("1n", 1, 1),
        ("1500m", 2, 1500),
        ("-1500m", -2, -1500),
        ("1Ki", 1024, 1_024_000),
        ("1e99", i64::MAX, i64::MAX),
    ] {
        assert_eq!((read(text).value(), read(text).milli_value()), (value, milli), "{text}");
    }
    assert_eq!(read("100m").times(3).to_string(), "300m");
    let _far = &read("1e99") + &read("1n");
}
