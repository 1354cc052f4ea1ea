"""The one part of dpipe that is compiled; all else about the package is in setup.cfg."""

from setuptools import Extension, setup

ranking = Extension(
    "dpipe.kernels._ranking",
    ["dpipe/kernels/_ranking.c"],
    # No instructions but those of every machine of its kind, and no fused multiply-add, so that
    # NumPy, which does this work where it cannot be compiled, gives the same bits.
    extra_compile_args=["-O3", "-ffp-contract=off"],
    libraries=["m"],
    py_limited_api=True,
    optional=True,
)

if __name__ == "__main__":
    setup(ext_modules=[ranking])
