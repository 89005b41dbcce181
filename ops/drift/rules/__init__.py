"""The rules of the drift judge, and what they find."""
