"""Values of words for a score."""
