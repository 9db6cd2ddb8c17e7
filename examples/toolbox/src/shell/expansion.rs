//! What words stand for: variables, the output of commands, numbers; then fields and file names.

use std::path::Path;

use super::syntax::{Part, Word};
use super::{Shell, arithmetic, pattern};
use crate::io::{Io, Output};

/// File names that one pattern may mean.
const NAMES_MAX: usize = 10_000;

/// A piece of what a word stands for.
struct Piece {
    text: String,
    /// Neither split nor taken for a pattern.
    quoted: bool,
    /// Came of a variable or command: is split where it has spaces.
    expanded: bool,
}

impl Shell {
    /// The fields that words stand for.
    pub(super) fn fields(&mut self, words: &[Word], io: &mut Io) -> Result<Vec<String>, String> {
        let mut fields = Vec::new();
        for word in words {
            // Alone between quotes every argument is a field of its own.
            if let [Part::Text { text, quoted: true }, Part::Variable { name, operator: None, quoted: true }] =
                word.as_slice()
                && text.is_empty()
                && name == "@"
            {
                fields.extend(self.arguments.iter().skip(1).cloned());
                continue;
            }
            let pieces = self.pieces(word, io)?;
            split(pieces).into_iter().for_each(|field| self.names(field, &mut fields));
        }
        Ok(fields)
    }

    /// The one text that a word stands for.
    pub(super) fn value(&mut self, word: &[Part], io: &mut Io) -> Result<String, String> {
        Ok(self.pieces(word, io)?.into_iter().map(|piece| piece.text).collect())
    }

    /// The same as a pattern: what was quoted means itself.
    pub(super) fn pattern(&mut self, word: &[Part], io: &mut Io) -> Result<String, String> {
        Ok(self.pieces(word, io)?.iter().map(as_pattern).collect())
    }

    fn pieces(&mut self, word: &[Part], io: &mut Io) -> Result<Vec<Piece>, String> {
        let mut pieces = Vec::new();
        for part in word {
            let expanded = |text, quoted| Piece { text, quoted, expanded: true };
            match part {
                Part::Text { text, quoted } => {
                    pieces.push(Piece { text: text.clone(), quoted: *quoted, expanded: false })
                }
                Part::Length(name) => {
                    let length = self.variable(name).unwrap_or_default().chars().count();
                    pieces.push(expanded(length.to_string(), true));
                }
                Part::Arithmetic(text) => {
                    let text = self.value(text, io)?;
                    let number = arithmetic::evaluate(&text, self)?;
                    pieces.push(expanded(number.to_string(), true));
                }
                Part::Command { script, quoted } => {
                    let printed = Output::buffer();
                    let mut inner = Io { output: printed.clone(), ..io.clone() };
                    self.status = self.apart(script, &mut inner);
                    let text = String::from_utf8_lossy(&printed.taken()).trim_end_matches('\n').to_owned();
                    pieces.push(expanded(text, *quoted));
                }
                Part::Variable { name, operator: None, quoted } => {
                    pieces.push(expanded(self.variable(name).unwrap_or_default(), *quoted));
                }
                Part::Variable { name, operator: Some((operator, word)), quoted } => {
                    pieces.push(expanded(self.operated(name, operator, word, io)?, *quoted));
                }
            }
        }
        Ok(pieces)
    }

    /// `${NAME OPERATOR WORD}`.
    fn operated(&mut self, name: &str, operator: &str, word: &Word, io: &mut Io) -> Result<String, String> {
        let value = self.variable(name);
        let is_set = value.as_ref().is_some_and(|value| !operator.starts_with(':') || !value.is_empty());
        let value = value.unwrap_or_default();
        match operator.trim_start_matches(':') {
            "+" => {
                if is_set {
                    self.value(word, io)
                } else {
                    Ok(String::new())
                }
            }
            "-" if !is_set => self.value(word, io),
            "=" if !is_set => {
                let value = self.value(word, io)?;
                self.variables.insert(name.to_owned(), value.clone());
                Ok(value)
            }
            "?" if !is_set => {
                let why = self.value(word, io)?;
                Err(format!("{name}: {}", if why.is_empty() { "parameter not set" } else { &why }))
            }
            cut @ ("%" | "%%" | "#" | "##") => {
                let pattern = self.pattern(word, io)?;
                let mut ends: Vec<usize> = value.char_indices().map(|(at, _)| at).chain([value.len()]).collect();
                // What is left is as long as can be for one sign, as short for two.
                if matches!(cut, "%" | "##") {
                    ends.reverse();
                }
                let left = ends.into_iter().find_map(|at| {
                    let (head, tail) = value.split_at(at);
                    let (gone, left) = if cut.starts_with('%') { (tail, head) } else { (head, tail) };
                    pattern::matches(&pattern, gone).then(|| left.to_owned())
                });
                Ok(left.unwrap_or(value))
            }
            _ => Ok(value),
        }
    }

    /// A variable or what the shell knows by a sign.
    pub(super) fn variable(&mut self, name: &str) -> Option<String> {
        match name {
            "?" => Some(self.status.to_string()),
            "#" => Some((self.arguments.len() - 1).to_string()),
            "@" | "*" => Some(self.arguments[1..].join(" ")),
            // A component has no processes; this is what the first of a container has.
            "$" => Some("1".to_owned()),
            "!" | "-" => Some(String::new()),
            "RANDOM" => {
                self.random = self.random.wrapping_mul(1_103_515_245).wrapping_add(12_345);
                Some(((self.random >> 16) & 0x7fff).to_string())
            }
            "PWD" => Some(self.directory.to_string_lossy().into_owned()),
            _ => match name.parse::<usize>() {
                Ok(at) => self.arguments.get(at).cloned(),
                Err(_) => self.variables.get(name).cloned(),
            },
        }
    }

    /// The files that a field means, or the field itself.
    fn names(&self, field: Vec<Piece>, fields: &mut Vec<String>) {
        let text: String = field.iter().map(|piece| piece.text.as_str()).collect();
        let is_pattern = field.iter().any(|piece| !piece.quoted && piece.text.contains(['*', '?', '[']));
        if !is_pattern {
            fields.push(text);
            return;
        }
        let pattern: String = field.iter().map(as_pattern).collect();
        let (start, base) =
            if pattern.starts_with('/') { ("/", Path::new("/")) } else { ("", self.directory.as_path()) };
        let mut found = vec![start.to_owned()];
        for step in pattern.split('/').filter(|step| !step.is_empty()) {
            let mut next = Vec::new();
            for before in found {
                let mut names: Vec<String> = std::fs::read_dir(base.join(&before))
                    .into_iter()
                    .flatten()
                    .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
                    .filter(|name| (!name.starts_with('.') || step.starts_with('.')) && pattern::matches(step, name))
                    .collect();
                names.sort();
                let path = |name| {
                    if before.is_empty() || before.ends_with('/') {
                        format!("{before}{name}")
                    } else {
                        format!("{before}/{name}")
                    }
                };
                next.extend(names.into_iter().map(path));
                if next.len() > NAMES_MAX {
                    next.truncate(NAMES_MAX);
                }
            }
            found = next;
        }
        match found.is_empty() {
            true => fields.push(text),
            false => fields.append(&mut found),
        }
    }
}

fn as_pattern(piece: &Piece) -> String {
    match piece.quoted {
        true => piece.text.chars().flat_map(|c| ['\\', c]).collect(),
        false => piece.text.clone(),
    }
}

/// Splits at the spaces of what came of variables and commands.
fn split(pieces: Vec<Piece>) -> Vec<Vec<Piece>> {
    let mut fields: Vec<Vec<Piece>> = Vec::new();
    let mut is_open = false;
    let add = |piece: Piece, fields: &mut Vec<Vec<Piece>>, is_open: &mut bool| {
        if !*is_open {
            fields.push(Vec::new());
            *is_open = true;
        }
        fields.last_mut().expect("there is one").push(piece);
    };
    for piece in pieces {
        if piece.quoted || !piece.expanded {
            add(piece, &mut fields, &mut is_open);
            continue;
        }
        let mut rest = piece.text.as_str();
        while !rest.is_empty() {
            let end = rest.find([' ', '\t', '\n']).unwrap_or(rest.len());
            if end > 0 {
                add(Piece { text: rest[..end].to_owned(), quoted: false, expanded: true }, &mut fields, &mut is_open);
            }
            let after = rest[end..].trim_start_matches([' ', '\t', '\n']);
            is_open &= end == rest.len();
            rest = after;
        }
    }
    fields
}
