//! coracle-discovery
