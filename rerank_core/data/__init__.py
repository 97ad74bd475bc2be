"""From a collection to candidates, splits and training rows."""
