"""Text that is read as it comes: never indexed, tokenised on the way, its place kept in JSON."""
