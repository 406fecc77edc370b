"""Addresses: paths of pictures that may say which part of a file is meant, such as ``file.czi#scene=2``."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from bbdm.pictures import formats, images
from bbdm.pictures.formats.parts import WHOLE, Part, read_part


def split(path: Path) -> tuple[Path, Part]:
    """The file of an address, and the part of it; the path itself where a file has the full name.

    Raises:
        ValueError: a file is there, and what follows ``#`` is no part.
    """
    name, mark, text = path.name.rpartition("#")
    if not mark or not name or os.path.lexists(path):
        return path, WHOLE
    file = path.with_name(name)
    if not formats.is_picture(file):
        return path, WHOLE
    try:
        return file, read_part(text)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def joined(file: Path, part: Part) -> Path:
    """The address of a part of a file."""
    return file.with_name(f"{file.name}#{part}") if part else file


def header(file: Path, part: Part = WHOLE) -> Any:
    """The :class:`bbdm.pictures.Header` of a part of a file, whose path is the address; see :func:`split`."""
    address = joined(file, part)
    with images.named("read", address):
        name = formats.reader_of(file)
        module = formats.module(name)
        if formats.LIBRARIES[name].parts:
            head = module.header(file, part)
        elif part:
            raise ValueError(f"a file of {name} is one picture: leave out #{part}")
        else:
            head = module.header(file)
        return replace(head, path=address, reader=name)


def parts(file: Path) -> list[Part]:
    """The parts of a file that are rows of a data set, [WHOLE] of one picture; for errors see ``header``.

    A file whose suffix is of no format with parts is not opened.
    """
    if not formats.may_have_parts(file):
        return [WHOLE]
    with images.named("read", file):
        name = formats.reader_of(file)
        if not formats.LIBRARIES[name].parts:
            return [WHOLE]
        return formats.module(name).parts(file)
