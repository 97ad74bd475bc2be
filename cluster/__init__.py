"""Where it runs: checks of a running cluster."""
