"""Formats of pictures: a module for each library, of three functions: header, read and write."""
