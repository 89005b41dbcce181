"""What pyproject.toml cannot say: the compiled loops are optional."""

from setuptools import Extension, setup

# Not an extension of the interpreter: a library that amn/kernel.py loads by ctypes. Without a C
# compiler the install goes on, and NumPy serves.
setup(
    ext_modules=[
        Extension(
            "amn._kernel",
            ["amn/kernel.c"],
            extra_compile_args=["-O3", "-fno-math-errno"],
            libraries=["m"],
            optional=True,
        )
    ]
)
