//! coracle-node
