"""What pyproject.toml cannot say: the compiled loops are optional."""

from glob import glob

from setuptools import Extension, setup

# Not an extension of the interpreter: a library that amn/kernel.py loads by ctypes. Without a C
# compiler the install goes on, and NumPy serves.
setup(
    ext_modules=[
        Extension(
            "amn._kernel",
            ["amn/kernel.c"],
            depends=sorted(glob("amn/*.h")),  # so that they are in the sdist, and a change builds anew
            extra_compile_args=["-O3", "-fno-math-errno"],
            libraries=["m"],
            optional=True,
        )
    ]
)
