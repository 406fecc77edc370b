"""``python -m bbdm`` is the command ``bbdm``."""

from bbdm.cli import main

if __name__ == "__main__":
    main()
