"""`bbdm convert-deeplab` as a script: examples/convert_deeplabv3.py --help lists its flags."""

from bbdm.cli import run

if __name__ == "__main__":
    run("convert-deeplab")
