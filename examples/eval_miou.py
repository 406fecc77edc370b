"""`bbdm eval-miou` as a script: examples/eval_miou.py --help lists its flags."""

from bbdm.cli import run

if __name__ == "__main__":
    run("eval-miou")
