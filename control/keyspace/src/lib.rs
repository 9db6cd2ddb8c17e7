//! coracle-keyspace
