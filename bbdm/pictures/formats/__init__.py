"""Formats of pictures: a module for each library, of three functions.

    header(path) -> Header                  of a picture (C, *S); no values are read
    read(header, window) -> NDArray         (C, *W) of a window, a slice for each of the axes S
    write(path, picture) -> None            with what the format holds of the geometry

Each raises ModuleNotFoundError where its library is not installed, with what installs it. Reading raises
ValueError where a file is damaged, or has what is not read; writing, where the format does not hold the
picture.
:mod:`bbdm.pictures.files` chooses the module, checks windows and costs, and gives errors the file's name.
"""
