"""Which files of a channel are data, and in which format."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from optml_toolkit.container import Channel, UserError

MEDIA_TYPES = {
    "text/libsvm": "libsvm",
    "text/x-libsvm": "libsvm",
    "libsvm": "libsvm",
    "text/csv": "csv",
    "csv": "csv",
    "application/x-parquet": "parquet",
    "parquet": "parquet",
    "application/x-recordio-protobuf": "recordio",
    "recordio-protobuf": "recordio",
}
CHARSETS = (
    "utf-8",
    "utf8",
    "us-ascii",
    "ascii",
    "iso-8859-1",
    "latin-1",
    "windows-1252",
)  # in all of them, numbers are ASCII
ONE_LABEL = range(1, 2)


@dataclass(frozen=True, kw_only=True)
class Content:
    """What a channel's ContentType says. `format` is a value of MEDIA_TYPES; `label_size` counts CSV's leading label columns."""

    format: str
    label_size: int


def data_files(channel: Channel) -> list[Path]:
    """Every file of a channel, sorted, sub-folders included; names that begin with `_` are markers, not data.

    UserError for a hidden file, as in AWS's containers: it is there by mistake, and would be read as data.
    """
    if channel.folder.is_file():
        return [channel.folder]
    found: list[Path] = []
    for parent, folders, names in os.walk(channel.folder, followlinks=True):
        for name in (*folders, *names):
            if name.startswith("."):
                raise UserError(
                    f"Hidden file found in the data path! Remove that before training: {Path(parent, name)}"
                )
        found += [Path(parent, name) for name in names if not name.startswith("_")]
    return sorted(file for file in found if file.stat().st_size > 0)


def content_of(channel: Channel, *, formats: Sequence[str], label_sizes: range = ONE_LABEL) -> Content:
    """The format of a channel, one of `formats` (the first where ContentType is missing), and its number of label columns (the
    lowest of `label_sizes` where it is not said). UserError for one that cannot be read."""
    if channel.content_type is None:
        return Content(format=formats[0], label_size=label_sizes[0])
    media_type, *parameters = (part.strip().lower() for part in channel.content_type.split(";"))
    format_name = MEDIA_TYPES.get(media_type)
    if format_name is None or format_name not in formats:
        readable = ", ".join(name for name, each in MEDIA_TYPES.items() if each in formats)
        raise UserError(
            f"Channel configuration for '{channel.name}' channel is not supported: ContentType {channel.content_type!r}. "
            f"This algorithm reads {readable}"
        )
    label_size = label_sizes[0]
    for parameter in parameters:
        name, _, value = (part.strip(" \"'") for part in parameter.partition("="))
        if name == "label_size" and format_name == "csv":
            if not value.isascii() or not value.isdigit() or int(value) not in label_sizes:
                wanted = (
                    f"equal to {label_sizes[0]}"
                    if len(label_sizes) == 1
                    else f"from {label_sizes[0]} to {label_sizes[-1]}"
                )
                raise UserError(
                    f"channel {channel.name!r}: {channel.content_type} is not an accepted csv ContentType. "
                    f"Optional parameter label_size must be {wanted}"
                )
            label_size = int(value)
        elif name in ("charset", "encoding") and format_name in ("csv", "libsvm"):
            if value not in CHARSETS:
                raise UserError(
                    f"channel {channel.name!r}: ContentType {channel.content_type!r}: charset {value!r} cannot be read, only "
                    f"{', '.join(CHARSETS)}: convert the files to utf-8"
                )
        elif parameter:
            raise UserError(
                f"channel {channel.name!r}: ContentType {channel.content_type!r}: unknown parameter {name!r}"
            )
    return Content(format=format_name, label_size=label_size)


def format_of(channel: Channel, default: str) -> str:
    """csv or libsvm, from the channel's ContentType. UserError for one that cannot be read."""
    formats = (default, *({"csv", "libsvm"} - {default}))
    return content_of(channel, formats=formats).format
