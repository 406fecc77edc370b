"""`bbdm train-vqgan` as a script: examples/train_vqgan.py --help all lists its flags."""

from bbdm.cli import run

if __name__ == "__main__":
    run("train-vqgan")
