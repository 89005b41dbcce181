"""`amn wire`: what clients in other languages need."""
