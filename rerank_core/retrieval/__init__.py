"""First stages: what fetches a query's candidates."""
