"""Reads and judges what the shadow worker measured."""
