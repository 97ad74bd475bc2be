"""From scores to an exact ranking."""
