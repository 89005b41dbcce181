"""Vectors in reading order: files, windows, splits by article."""
