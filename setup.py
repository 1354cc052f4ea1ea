"""The parts of dpipe that are compiled; all else about the package is in setup.cfg."""

from setuptools import Extension, setup

kernels = [
    Extension(
        f"dpipe.kernels.{name}",
        [f"dpipe/kernels/{name}.c"],
        # No instructions but those of every machine of its kind, and no fused multiply-add, so that
        # NumPy, which does this work where it cannot be compiled, gives the same bits.
        extra_compile_args=["-O3", "-ffp-contract=off"],
        libraries=["m"],
        py_limited_api=True,
        optional=True,
    )
    for name in ("_ranking", "_basis", "_spectrum")
]

if __name__ == "__main__":
    setup(ext_modules=kernels)
