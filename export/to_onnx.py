"""The command `bbdm export` as a script: python export/to_onnx.py --help all lists its flags."""

from bbdm.cli import run

if __name__ == "__main__":
    run("export")
