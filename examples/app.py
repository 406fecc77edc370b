"""`bbdm app` as a script: examples/app.py --help all lists its flags."""

from bbdm.cli import run

if __name__ == "__main__":
    run("app")
