"""`bbdm serve` as a script: examples/serve.py --help all lists its flags."""

from bbdm.cli import run

if __name__ == "__main__":
    run("serve")
