"""Batch prediction: files of vectors in, files of predictions out, resumed where it was broken off."""
