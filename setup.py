"""What pyproject.toml cannot say: the compiled loops are optional."""

from glob import glob

from setuptools import Extension, setup

# Not an extension of the interpreter: a library that amn/kernel/bindings.py loads by ctypes. Without a C
# compiler the install goes on, and NumPy serves.
setup(
    ext_modules=[
        Extension(
            "amn.kernel._kernel",
            ["amn/kernel/kernel.c"],
            depends=sorted(glob("amn/kernel/*.h")),  # so that they are in the sdist, and a change builds anew
            extra_compile_args=["-O3", "-fno-math-errno"],
            libraries=["m"],
            optional=True,
        )
    ]
)
