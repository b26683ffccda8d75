"""What pyproject.toml cannot say: a wheel holds experiments/ and constraints/ inside dct_vl/."""

from pathlib import Path

from setuptools import find_namespace_packages, setup

# the container installs the packages before it has the code
SHIPPED = [name for name in ("experiments", "constraints") if Path(name).is_dir()]

setup(
    packages=[
        *find_namespace_packages(include=["dct_tokenizer*", "data_prep*", "dct_vl*"]),
        *(f"dct_vl.{name}" for name in SHIPPED),
    ],
    package_dir={f"dct_vl.{name}": name for name in SHIPPED},
    package_data={
        "": ["*.yaml", "*.json", "*.jinja", "*.css"],
        "dct_vl.experiments": ["**/*.yaml"],
        "dct_vl.constraints": ["*.txt"],
    },
)
