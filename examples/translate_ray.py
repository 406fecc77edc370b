"""`bbdm translate-ray` as a script: examples/translate_ray.py --help all lists its flags."""

from bbdm.cli import run

if __name__ == "__main__":
    run("translate-ray")
