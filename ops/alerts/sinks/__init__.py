"""The sinks that alerts go to: one module a protocol, and their common base."""
