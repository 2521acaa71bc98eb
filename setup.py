"""Lists the packages, which pyproject.toml cannot: conf/ is trainer.conf in a wheel."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["trainer", "trainer.*"]), "trainer.conf"],
    package_dir={"trainer.conf": "conf"},
    package_data={"trainer.conf": ["*.yaml", "*/*.yaml"]},
)
