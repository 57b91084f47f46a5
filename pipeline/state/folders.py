"""Folders on a disk or an object store, by one URL (fsspec)."""

from __future__ import annotations

from typing import Any, Final

import fsspec
from fsspec.utils import get_protocol

from pipeline.errors import ConfigError

_EXTRAS: Final = {
    **dict.fromkeys(("s3", "s3a"), "s3"),
    **dict.fromkeys(("gs", "gcs"), "gcs"),
    **dict.fromkeys(("az", "abfs", "abfss"), "azure"),
}


def open_folder(setting: str, url: str) -> tuple[Any, str]:
    """The file system that a folder lies on, and where, as that names it; the folder need not be there.

    Args:
        setting: of the configuration that has the URL.
        url: or path.

    Raises:
        ConfigError: the URL names no kind of folder that can be opened here.
    """
    try:
        files, path = fsspec.url_to_fs(url)
    except (ValueError, ImportError) as error:
        extra = _EXTRAS.get(get_protocol(url)) if isinstance(error, ImportError) else None
        remedy = (
            f"install it with: pip install 'offbeat[{extra}]'"
            if extra
            else "give a folder, or install what it asks for"
        )
        raise ConfigError(f"{setting}: {url!r} cannot be opened ({error}); {remedy}") from error
    return files, path.rstrip("/")
