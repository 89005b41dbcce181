"""The larger corpus: prose of Debian's documentation packages, as documents that `amn data encode` reads."""
