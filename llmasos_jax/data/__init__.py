"""Data: text to documents, to token ids, to packed rows, to batches."""
