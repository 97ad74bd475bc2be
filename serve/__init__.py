"""What we keep running: the same artefact behind an HTTP API."""
