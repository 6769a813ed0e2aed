"""Faults that a user can act on. The command line prints each as one line; all else is a defect, with a traceback."""


class BitLMError(Exception):
    """Base of every fault whose message says what is wrong, where, and what to do."""


class ConfigError(BitLMError):
    """An unknown key, a wrong type or an impossible combination; raised before any work."""


class SourceError(BitLMError):
    """Data from outside is missing, unreadable or unusable."""


class ArtifactError(BitLMError):
    """An artifact is missing, incomplete, damaged, or not what its reader expects."""


class ServiceError(BitLMError):
    """Ray, Prefect or a folder of this machine, which a run needs, cannot be used."""
