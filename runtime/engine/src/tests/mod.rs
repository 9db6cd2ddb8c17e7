//! Behaviour of the whole engine, with guests written down here.
