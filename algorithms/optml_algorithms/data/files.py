"""Which files of a channel are data."""

import os
from pathlib import Path

from optml_toolkit.container import Channel, UserError

MEDIA_TYPES = {
    "text/libsvm": "libsvm",
    "text/x-libsvm": "libsvm",
    "libsvm": "libsvm",
    "text/csv": "csv",
    "csv": "csv",
}


def data_files(channel: Channel) -> list[Path]:
    """Every file of a channel, sorted, sub-folders included; names that begin with `_` are markers, not data.

    UserError for a hidden file, as in AWS's containers: it is there by mistake, and would be read as data.
    """
    found: list[Path] = []
    for parent, folders, names in os.walk(channel.folder, followlinks=True):
        for name in (*folders, *names):
            if name.startswith("."):
                raise UserError(
                    f"Hidden file found in the data path! Remove that before training: {Path(parent, name)}"
                )
        found += [Path(parent, name) for name in names if not name.startswith("_")]
    return sorted(file for file in found if file.stat().st_size > 0)


def format_of(channel: Channel, default: str) -> str:
    """csv or libsvm, from the channel's ContentType. UserError for one that cannot be read."""
    if channel.content_type is None:
        return default
    media_type, *parameters = (part.strip().lower() for part in channel.content_type.split(";"))
    if media_type not in MEDIA_TYPES:
        raise UserError(
            f"Channel configuration for '{channel.name}' channel is not supported: ContentType {channel.content_type!r}. "
            f"This version reads {', '.join(sorted(MEDIA_TYPES))}"
        )
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name == "label_size" and value != "1":
            raise UserError(
                f"{channel.content_type} is not an accepted csv ContentType. "
                "Optional parameter label_size must be equal to 1"
            )
        if name not in ("label_size", "charset"):
            raise UserError(
                f"channel {channel.name!r}: ContentType {channel.content_type!r}: unknown parameter {name!r}"
            )
    return MEDIA_TYPES[media_type]
