"""The bank of reference vectors: exact or through an index, built, checked and merged."""
