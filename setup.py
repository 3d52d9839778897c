"""The packages of a wheel: those that are found, and the recipes and job scripts that lie beside them."""

from setuptools import find_packages, setup

setup(packages=[*find_packages(include=["vit_dist*", "launcher*"]), "vit_dist._configs", "vit_dist._slurm"])
