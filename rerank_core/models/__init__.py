"""Language models as scorers, and the artefact that holds one."""
