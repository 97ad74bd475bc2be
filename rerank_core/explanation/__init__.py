"""Text that says why, and the check that it agrees with the attribution."""
