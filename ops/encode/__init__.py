"""Documents to vectors: files of text are cut into chunks, and encoded by a local model."""
