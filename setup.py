"""The packages of a wheel: those that are found, and the recipes and job scripts that lie beside them."""

from setuptools import find_namespace_packages, find_packages, setup


def folders(room):
    """A folder of data and those below it: packages without code for setuptools, which warns of each unnamed one."""
    return [f"vit_dist._{room}", *(f"vit_dist._{room}.{name}" for name in find_namespace_packages(room))]


setup(packages=[*find_packages(include=["vit_dist*", "launcher*"]), *folders("configs"), *folders("slurm")])
