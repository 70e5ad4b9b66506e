"""Maps the two source folders onto one installed package; everything else is in pyproject.toml.

``setup()`` stays under ``__main__`` so that a tool which imports every module of a folder does not start a build.
"""

from setuptools import find_packages, setup

if __name__ == "__main__":
    converters = ["nnunet_dualcl.dataset_conversion"]
    converters += [f"nnunet_dualcl.dataset_conversion.{name}" for name in find_packages("dataset_conversion")]
    setup(
        packages=find_packages(include=["nnunet_dualcl", "nnunet_dualcl.*"]) + converters,
        package_dir={"nnunet_dualcl.dataset_conversion": "dataset_conversion"},
        package_data={
            "nnunet_dualcl": ["py.typed"],
            "nnunet_dualcl.benchmark": ["*.html.j2"],
            "nnunet_dualcl.dataset_conversion": ["*.html.j2"],
        },
        include_package_data=False,
    )
