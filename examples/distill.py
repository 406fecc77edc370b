"""`bbdm distill` as a script: examples/distill.py --help all lists its flags."""

from bbdm.cli import run

if __name__ == "__main__":
    run("distill")
