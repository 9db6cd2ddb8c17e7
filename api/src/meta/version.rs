//! Resource versions: decimal text of the keyspace's revision.

use super::field::FieldError;
use super::text::quote;

/// Reads a resource version; empty and `0` are 0, which means any. The error is the reference's.
pub fn parse_resource_version(text: &str) -> Result<u64, FieldError> {
    if text.is_empty() {
        return Ok(0);
    }
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    match text.parse() {
        Ok(version) if digits => Ok(version),
        _ => {
            let why = if digits { "value out of range" } else { "invalid syntax" };
            let detail = format!("strconv.ParseUint: parsing {}: {why}", quote(text));
            Err(FieldError::invalid("resourceVersion", text, &detail))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_versions() {
        for (text, expected) in [
            ("", Ok(0)),
            ("0", Ok(0)),
            ("812", Ok(812)),
            ("+1", Err("resourceVersion: Invalid value: \"+1\": strconv.ParseUint: parsing \"+1\": invalid syntax")),
            (
                "99999999999999999999",
                Err(
                    "resourceVersion: Invalid value: \"99999999999999999999\": strconv.ParseUint: parsing \"99999999999999999999\": value out of range",
                ),
            ),
        ] {
            assert_eq!(parse_resource_version(text).map_err(|e| e.to_string()), expected.map_err(str::to_owned));
        }
    }
}
