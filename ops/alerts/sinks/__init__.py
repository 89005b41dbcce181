"""Where alerts go: one module a protocol, and what they have in common."""
