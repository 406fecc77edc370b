"""The command ``bbdm``: a file for each subcommand."""
