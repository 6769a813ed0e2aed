"""What commands need of the machine: a home, a folder for temporary files, usable proxies and settings."""

import os
import tempfile
import urllib.request
from pathlib import Path

from bitlm.errors import ConfigError, ServiceError
from bitlm.storage import redact


def check_environment() -> None:
    """Raises ServiceError naming what is missing or unusable."""
    try:
        Path.home()
    except RuntimeError as error:
        raise ServiceError(f"HOME is not set, and user {os.getuid()} has no home: set HOME to a folder") from error
    try:
        tempfile.gettempdir()
    except FileNotFoundError as error:
        raise ServiceError(f"{error.strerror}: set TMPDIR to a folder with free space that can be written") from error
    proxies = {name: url for name, url in urllib.request.getproxies_environment().items() if name != "no"}
    if proxies:
        _check_proxies(proxies)


def _check_proxies(proxies: dict[str, str]) -> None:
    """Prefect's client and the Hub's read the variables as httpx does, and then fail for any address."""
    import httpx

    try:
        httpx.Client().close()
    except (ValueError, ImportError, httpx.InvalidURL) as error:
        named = ", ".join(f"{name.upper()}_PROXY = {redact(url)}" for name, url in proxies.items())
        raise ServiceError(f"{named}: {error}; correct or unset it") from error


def check_prefect_settings() -> None:
    """Raises ConfigError for a variable or a file that Prefect cannot read; it reads them when it is first imported."""
    try:
        import prefect.settings

        prefect.settings.get_current_settings()
    except ValueError as error:  # pydantic's and tomllib's errors are
        said = " ".join(line.strip() for line in str(error).partition(" [type=")[0].splitlines())
        remedy = "correct the variable PREFECT_… or profiles.toml"
        raise ConfigError(f"Prefect cannot read its settings ({redact(said)}): {remedy}") from error
