"""How good a run is, beside what it must be compared with, and how sure we are."""
