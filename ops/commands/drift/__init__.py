"""The command group amn drift."""
