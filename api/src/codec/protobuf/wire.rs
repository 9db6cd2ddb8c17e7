//! Protobuf's wire format: tags, varints, nested messages.

/// Why bytes are no message, in the words of Go's generated readers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum WireError {
    #[error("unexpected EOF")]
    Truncated,
    #[error("proto: integer overflow")]
    Overflow,
    #[error("proto: illegal tag {0} (wire type {1})")]
    Tag(u64, u8),
    #[error("proto: wrong wireType = {0} for field {1}")]
    Type(u8, u32),
    #[error("proto: messages are nested too deeply")]
    Depth,
    #[error("proto: there are more than 100000 objects in it")]
    Objects,
    #[error("proto: a raw value is no JSON")]
    Json,
    #[error("proto: a time is out of range")]
    Time,
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Quantity,
}

/// A field as it stands in a message.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Wire<'a> {
    Varint(u64),
    Fixed64(u64),
    Bytes(&'a [u8]),
    Fixed32(u32),
}

impl<'a> Wire<'a> {
    pub(super) fn number(self) -> u8 {
        match self {
            Wire::Varint(_) => 0,
            Wire::Fixed64(_) => 1,
            Wire::Bytes(_) => 2,
            Wire::Fixed32(_) => 5,
        }
    }

    pub(super) fn bytes(self, field: u32) -> Result<&'a [u8], WireError> {
        match self {
            Wire::Bytes(bytes) => Ok(bytes),
            other => Err(WireError::Type(other.number(), field)),
        }
    }

    pub(super) fn varint(self, field: u32) -> Result<u64, WireError> {
        match self {
            Wire::Varint(number) => Ok(number),
            other => Err(WireError::Type(other.number(), field)),
        }
    }
}

/// The fields of a message, in the order they stand in.
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u32, Wire<'a>), WireError>;

    fn next(&mut self) -> Option<Self::Item> {
        (!self.0.is_empty()).then(|| self.field())
    }
}

impl<'a> Fields<'a> {
    fn field(&mut self) -> Result<(u32, Wire<'a>), WireError> {
        let tag = self.varint()?;
        let kind = (tag & 7) as u8;
        let number = match u32::try_from(tag >> 3) {
            Ok(number) if number > 0 => number,
            _ => return Err(WireError::Tag(tag >> 3, kind)),
        };
        let wire = match kind {
            0 => Wire::Varint(self.varint()?),
            1 => Wire::Fixed64(u64::from_le_bytes(self.array()?)),
            2 => {
                let length = usize::try_from(self.varint()?).map_err(|_| WireError::Truncated)?;
                Wire::Bytes(self.take(length)?)
            }
            5 => Wire::Fixed32(u32::from_le_bytes(self.array()?)),
            _ => return Err(WireError::Tag(u64::from(number), kind)),
        };
        Ok((number, wire))
    }

    pub(super) fn varint(&mut self) -> Result<u64, WireError> {
        let mut number = 0_u64;
        for (at, &byte) in self.0.iter().enumerate().take(10) {
            if at == 9 && byte > 1 {
                return Err(WireError::Overflow);
            }
            number |= u64::from(byte & 0x7f) << (7 * at);
            if byte < 0x80 {
                self.0 = &self.0[at + 1..];
                return Ok(number);
            }
        }
        Err(if self.0.len() < 10 { WireError::Truncated } else { WireError::Overflow })
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], WireError> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(WireError::Truncated)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let taken = self.take(N)?;
        let mut array = [0; N];
        array.copy_from_slice(taken);
        Ok(array)
    }
}

pub(super) fn varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn tag(out: &mut Vec<u8>, field: u32, kind: u8) {
    varint(out, u64::from(field) << 3 | u64::from(kind));
}

/// A whole number or a boolean.
pub(super) fn integer(out: &mut Vec<u8>, field: u32, number: i64) {
    tag(out, field, 0);
    varint(out, number as u64);
}

pub(super) fn double(out: &mut Vec<u8>, field: u32, number: f64) {
    tag(out, field, 1);
    out.extend_from_slice(&number.to_le_bytes());
}

pub(super) fn bytes(out: &mut Vec<u8>, field: u32, bytes: &[u8]) {
    tag(out, field, 2);
    varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

pub(super) fn text(out: &mut Vec<u8>, field: u32, text: &str) {
    bytes(out, field, text.as_bytes());
}

/// A message within the message. Its length goes before it but is known after it: one byte is kept free, and what was
/// written moves up when that is not enough. Messages are small and nest a few levels; measuring first would cost more.
pub(super) fn nested(out: &mut Vec<u8>, field: u32, write: impl FnOnce(&mut Vec<u8>)) {
    tag(out, field, 2);
    let at = out.len();
    out.push(0);
    write(out);
    let length = out.len() - at - 1;
    if length < 0x80 {
        out[at] = length as u8;
        return;
    }
    let mut prefix = Vec::with_capacity(10);
    varint(&mut prefix, length as u64);
    let end = out.len();
    out.resize(end + prefix.len() - 1, 0);
    out.copy_within(at + 1..end, at + prefix.len());
    out[at..at + prefix.len()].copy_from_slice(&prefix);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again_and_what_is_cut_off_is_an_error() {
        let mut out = Vec::new();
        integer(&mut out, 1, -1);
        double(&mut out, 300, 1.5);
        nested(&mut out, 2, |out| text(out, 1, &"x".repeat(300)));
        let fields = Fields(&out).collect::<Result<Vec<_>, _>>().expect("a message");
        assert_eq!(fields[0], (1, Wire::Varint(u64::MAX)));
        assert_eq!(fields[1], (300, Wire::Fixed64(1.5_f64.to_bits())));
        let (2, Wire::Bytes(message)) = fields[2] else { panic!("{:?}", fields[2]) };
        assert_eq!(message.len(), 303);
        for end in 1..out.len() {
            let cut = Fields(&out[..end]).collect::<Result<Vec<_>, _>>();
            assert!(cut.is_err() || cut.is_ok_and(|fields| fields.len() < 3), "{end}");
        }
        assert_eq!(Fields(&[0x0b]).next(), Some(Err(WireError::Tag(1, 3))));
        assert_eq!(Fields(&[0xff; 11]).next(), Some(Err(WireError::Overflow)));
    }
}
