"""The embedded sample: a synthetic collection, written and graded for this project."""
