"""`bbdm eval` as a script: examples/eval.py --help all lists its flags."""

from bbdm.cli import run

if __name__ == "__main__":
    run("eval")
