//! The fields of a structure, found by their name: a sorted slice. Names are short and differ in length, so that most
//! steps of a search compare two numbers; hashing the name for every field of every object cost more.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::ops::Index;

use super::Field;

/// Fields by their JSON name, in an order of their own.
#[derive(Debug, Default)]
pub struct Fields(Box<[(String, Field)]>);

/// The fields with their names.
pub type Iter<'a> =
    std::iter::Map<std::slice::Iter<'a, (String, Field)>, fn(&'a (String, Field)) -> (&'a String, &'a Field)>;

impl Fields {
    /// The field of a name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Field> {
        self.get_key_value(name).map(|(_, field)| field)
    }

    /// The field of a name, and the name as it is kept here.
    #[must_use]
    pub fn get_key_value(&self, name: &str) -> Option<(&String, &Field)> {
        let at = self.0.binary_search_by(|(known, _)| order(known, name)).ok()?;
        self.0.get(at).map(|(name, field)| (name, field))
    }

    /// Whether there is a field of this name.
    #[must_use]
    pub fn contains_key(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// All fields.
    pub fn iter(&self) -> Iter<'_> {
        self.0.iter().map(|(name, field)| (name, field))
    }
}

fn order(a: &str, b: &str) -> Ordering {
    a.len().cmp(&b.len()).then_with(|| a.cmp(b))
}

impl FromIterator<(String, Field)> for Fields {
    fn from_iter<I: IntoIterator<Item = (String, Field)>>(fields: I) -> Fields {
        let mut fields: Vec<(String, Field)> = fields.into_iter().collect();
        fields.sort_by(|(a, _), (b, _)| order(a, b));
        Fields(fields.into())
    }
}

impl From<HashMap<String, Field>> for Fields {
    fn from(fields: HashMap<String, Field>) -> Fields {
        fields.into_iter().collect()
    }
}

impl<'a> IntoIterator for &'a Fields {
    type Item = (&'a String, &'a Field);
    type IntoIter = Iter<'a>;

    fn into_iter(self) -> Iter<'a> {
        self.iter()
    }
}

/// Of a field that is known to be there.
impl<Q: AsRef<str> + ?Sized> Index<&Q> for Fields {
    type Output = Field;

    fn index(&self, name: &Q) -> &Field {
        self.get(name.as_ref()).expect("a field of this structure")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_is_found_and_no_other() {
        let names = ["a", "b", "ab", "ba", "abc", "kind", "name", "items", "apiVersion"];
        let fields: Fields = names.iter().map(|name| ((*name).to_owned(), Field::default())).collect();
        for name in names {
            assert_eq!(fields.get_key_value(name).map(|(name, _)| name.as_str()), Some(name));
        }
        for name in ["", "c", "aa", "kin", "kinds", "Name"] {
            assert!(!fields.contains_key(name), "{name}");
        }
        assert_eq!(fields.iter().count(), names.len());
    }
}
