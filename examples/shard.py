"""`bbdm shard` as a script: examples/shard.py --help lists its flags."""

from bbdm.cli import run

if __name__ == "__main__":
    run("shard")
