"""Every error raised on purpose.

WhyrankError                 what a caller catches; the command line prints it and exits with 2
├── ConfigError              a setting is wrong, or two settings contradict each other
├── DataError                an input file, row or record is wrong; names file, row and remedy
├── ArtefactError            a reranker artefact or model folder is broken, altered or unsafe
├── OutputConflictError      the output folder belongs to a run with other digests
├── ResourceError            the cluster lacks what the job needs; says what is missing
└── JobError                 a job could not finish, after all retries; names the cause

    try:
        scorer = load_artefact(folder)
    except ArtefactError as error:
        sys.exit(f"cannot serve {folder}: {error}")
"""


class WhyrankError(Exception):
    """Base of every error that Whyrank raises on purpose."""


class ConfigError(WhyrankError, ValueError):
    """A setting is wrong, or two settings contradict each other."""


class DataError(WhyrankError):
    """An input file, row or record is wrong."""


class ArtefactError(WhyrankError):
    """A reranker artefact or a model folder is broken, altered or unsafe."""


class OutputConflictError(WhyrankError):
    """The output folder belongs to a run with other digests."""


class ResourceError(WhyrankError):
    """The cluster lacks what the job needs."""


class JobError(WhyrankError):
    """A job could not finish."""
