"""The compiled extension; everything else is in pyproject.toml."""

from Cython.Build import cythonize
from setuptools import Extension, setup

setup(
    ext_modules=cythonize(
        [Extension("darner._proto", ["darner/_proto.pyx"], extra_compile_args=["-O2"])],
        annotate=False,
    )
)
