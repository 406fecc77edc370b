"""`bbdm convert-vqgan` as a script: examples/convert_vqgan.py --help all lists its flags."""

from bbdm.cli import run

if __name__ == "__main__":
    run("convert-vqgan")
