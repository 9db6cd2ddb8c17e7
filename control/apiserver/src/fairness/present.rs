//! The requests that wait or have a seat, for whoever looks at them.

use std::sync::Arc;
use std::time::Instant;

use http::{Method, Uri};

use super::configured::Flow;
use crate::identity::Identity;

/// What a request is for.
#[derive(Debug)]
pub(crate) struct About {
    pub identity: Arc<Identity>,
    pub method: Method,
    pub uri: Uri,
}

/// A request.
#[derive(Clone)]
pub(super) struct Present {
    pub flow: Arc<Flow>,
    pub about: Option<Arc<About>>,
    pub width: u32,
    pub arrived: Instant,
    pub stands: Stands,
}

/// Where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stands {
    /// In a queue, by this number.
    Waiting(u64),
    /// It has a seat since then, and came from this queue.
    Seated(Option<u32>, Instant),
}

impl Present {
    /// One that has just come.
    pub fn new(flow: &Arc<Flow>, about: Option<Arc<About>>, width: u32) -> Present {
        let now = Instant::now();
        Present { flow: flow.clone(), about, width: width.max(1), arrived: now, stands: Stands::Seated(None, now) }
    }
}

/// All of them, each by its place here.
#[derive(Default)]
pub(super) struct Presence {
    places: Vec<Option<Present>>,
    free: Vec<usize>,
}

impl Presence {
    /// One is there; its place.
    pub fn add(&mut self, present: Present) -> usize {
        match self.free.pop() {
            Some(place) => {
                self.places[place] = Some(present);
                place
            }
            None => {
                self.places.push(Some(present));
                self.places.len() - 1
            }
        }
    }

    /// It is somewhere else now.
    pub fn stands(&mut self, place: usize, stands: Stands) {
        if let Some(Some(present)) = self.places.get_mut(place) {
            present.stands = stands;
        }
    }

    /// It has gone.
    pub fn remove(&mut self, place: usize) {
        if self.places.get_mut(place).and_then(Option::take).is_some() {
            self.free.push(place);
        }
    }

    /// Those that are there.
    pub fn all(&self) -> Vec<Present> {
        self.places.iter().flatten().cloned().collect()
    }
}
