"""The compiled extension, which setuptools has Cython translate; everything else is in pyproject.toml."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        # -g0: debug symbols are most of the size, and name the directory of the build
        Extension("darner._proto", ["darner/_proto.pyx"], extra_compile_args=["-O2", "-g0"])
    ]
)
