"""The networks, their folded forms and their checkpoints."""
