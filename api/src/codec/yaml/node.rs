//! YAML text to a tree of nodes, anchors kept.

use std::collections::HashMap;
use std::rc::Rc;

use crate::codec::{DEPTH_MAX, TOO_DEEP};
use libyaml_safer::{Error, ErrorKind, EventData, Parser, ScalarStyle};

/// A node of a document.
#[derive(Debug)]
pub(super) struct Node {
    /// From 1.
    pub(super) line: u64,
    pub(super) content: Content,
    /// How deep it nests, with what its aliases stand for.
    height: usize,
}

#[derive(Debug)]
pub(super) enum Content {
    Scalar {
        text: String,
        /// As `!!str`, long form; empty when there is none.
        tag: String,
        /// It has no tag and no quotes, so its text says its type.
        plain: bool,
    },
    List(Vec<Node>),
    Map(Vec<(Node, Node)>),
    /// A reference to an anchor; `None` from within the anchor itself.
    Alias(String, Option<Rc<Node>>),
    /// An anchored node.
    Anchored(Rc<Node>),
}

/// Reads the first document; `None` when there is none. An error is worded as Go words it, without `yaml:`.
pub(super) fn parse(bytes: &[u8]) -> Result<Option<Node>, String> {
    let mut parser = Parser::new();
    parser.set_input(bytes);
    let mut builder = Builder::default();
    loop {
        let event = parser.parse().map_err(|error| words(&error))?;
        // A node's line is that of its first character; a mapping in block style starts at its first key.
        let line = event.start_mark.line + 1;
        match event.data {
            EventData::StreamEnd => return Ok(None),
            EventData::DocumentEnd { .. } => return Ok(builder.root),
            EventData::StreamStart { .. } | EventData::DocumentStart { .. } => {}
            EventData::Alias { anchor } => {
                let target = match builder.anchors.get(&anchor) {
                    Some(node) => node.clone(),
                    None => return Err(format!("unknown anchor '{anchor}' referenced")),
                };
                let height = target.as_ref().map_or(0, |target| target.height);
                builder.add(Node { line, content: Content::Alias(anchor, target), height }, None)?;
            }
            EventData::Scalar { anchor, tag, value, plain_implicit, style, .. } => {
                let plain = plain_implicit && style == ScalarStyle::Plain;
                let content = Content::Scalar { text: value, tag: tag.unwrap_or_default(), plain };
                builder.add(Node { line, content, height: 0 }, anchor)?;
            }
            EventData::SequenceStart { anchor, .. } => builder.open(line, anchor, false)?,
            EventData::MappingStart { anchor, .. } => builder.open(line, anchor, true)?,
            EventData::SequenceEnd | EventData::MappingEnd => builder.close()?,
        }
    }
}

/// A collection that is not complete yet.
struct Open {
    line: u64,
    anchor: Option<String>,
    is_map: bool,
    children: Vec<Node>,
}

#[derive(Default)]
struct Builder {
    open: Vec<Open>,
    /// `None` while the anchored node is being read.
    anchors: HashMap<String, Option<Rc<Node>>>,
    root: Option<Node>,
}

impl Builder {
    fn open(&mut self, line: u64, anchor: Option<String>, is_map: bool) -> Result<(), String> {
        if self.open.len() >= DEPTH_MAX {
            return Err(TOO_DEEP.to_owned());
        }
        if let Some(anchor) = &anchor {
            self.anchors.insert(anchor.clone(), None);
        }
        self.open.push(Open { line, anchor, is_map, children: Vec::new() });
        Ok(())
    }

    fn close(&mut self) -> Result<(), String> {
        let Some(open) = self.open.pop() else { return Ok(()) };
        let height = 1 + open.children.iter().map(|child| child.height).max().unwrap_or(0);
        let content = if open.is_map {
            let mut pairs = Vec::with_capacity(open.children.len() / 2);
            let mut children = open.children.into_iter();
            while let (Some(key), Some(value)) = (children.next(), children.next()) {
                pairs.push((key, value));
            }
            Content::Map(pairs)
        } else {
            Content::List(open.children)
        };
        self.add(Node { line: open.line, content, height }, open.anchor)
    }

    fn add(&mut self, mut node: Node, anchor: Option<String>) -> Result<(), String> {
        // Aliases of aliases nest deeper than the text does.
        if self.open.len() + node.height > DEPTH_MAX {
            return Err(TOO_DEEP.to_owned());
        }
        if let Some(anchor) = anchor {
            let (line, height) = (node.line, node.height);
            let shared = Rc::new(node);
            self.anchors.insert(anchor, Some(shared.clone()));
            node = Node { line, content: Content::Anchored(shared), height };
        }
        match self.open.last_mut() {
            Some(open) => open.children.push(node),
            None => self.root = Some(node),
        }
        Ok(())
    }
}

/// Go counts lines from 0 in errors of the parser and from 1 in errors of the scanner.
fn words(error: &Error) -> String {
    let line =
        match (error.problem_mark().map_or(0, |mark| mark.line), error.context_mark().map_or(0, |mark| mark.line)) {
            (0, context) => context,
            (line, _) if error.kind() == ErrorKind::Scanner => line + 1,
            (line, _) => line,
        };
    let problem = match error.problem() {
        "" => "unknown problem parsing YAML content",
        problem => problem,
    };
    if line == 0 { problem.to_owned() } else { format!("line {line}: {problem}") }
}
