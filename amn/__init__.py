"""The model room: tensors, files and mathematics; no network, no clock, no environment."""
