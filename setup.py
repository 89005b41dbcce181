"""What pyproject.toml cannot say: the compiled loops are optional, and no part of an interpreter."""

import os
from glob import glob

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

# A library that amn/kernel/bindings.py loads by ctypes. Without a C compiler the install goes on, and NumPy
# serves; AMN_LOOPS=no leaves it out on purpose, and AMN_LOOPS=yes makes a failed build an error.
LOOPS = os.environ.get("AMN_LOOPS", "")


class Library(build_ext):
    """Builds a library that has the same name for every interpreter."""

    def get_ext_filename(self, name):
        """The path of the library within a wheel."""
        return os.path.join(*name.split(".")) + ".so"

    def run(self):
        """Builds; in a checkout, what an earlier version built under the name of one interpreter goes."""
        if self.inplace:
            for earlier in glob("amn/kernel/_kernel.*.so"):
                os.remove(earlier)
        super().run()


class Packages(build_py):
    """Adds the runbook, which alerts link to."""

    def run(self):
        """Copies the packages, and the document beside them."""
        super().run()
        if not self.editable_mode and os.path.exists("docs/runbook.md"):
            self.copy_file("docs/runbook.md", os.path.join(self.build_lib, "ops", "alerts", "runbook.md"))


class Wheel(bdist_wheel):
    """Tags the wheel for its platform alone: the same library serves every Python."""

    def get_tag(self):
        """The tags of the wheel: interpreter, ABI, platform."""
        return "py3", "none", super().get_tag()[2]


setup(
    cmdclass={"build_py": Packages, "build_ext": Library, "bdist_wheel": Wheel},
    ext_modules=[
        Extension(
            "amn.kernel._kernel",
            ["amn/kernel/kernel.c"],
            depends=sorted(glob("amn/kernel/*.h")),  # so that they are in the sdist, and a change builds anew
            extra_compile_args=["-O3", "-fno-math-errno"],
            libraries=["m"],
            optional=LOOPS != "yes",
        )
    ][: LOOPS != "no"],
)
