"""`bbdm translate` as a script: examples/generate.py --help all lists its flags."""

from bbdm.cli import run

if __name__ == "__main__":
    run("translate")
