"""The C files with AddressSanitizer and UndefinedBehaviorSanitizer, under all tests that call them.

    python scripts/sanitizers.py                        # the tests of kernels, rounding and moments
    python scripts/sanitizers.py tests/runtime -k cpu   # any tests, with options of pytest

natprec compiles its C files with `$CC` when they are first needed; here that is a script that adds the sanitizers, and
the result is kept in a temporary cache. A finding ends the test run, and this with exit code 1.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TESTS = (
    "tests/native", "tests/runtime/kernels/test_cpu.py", "tests/runtime/kernels/test_between.py",
    "tests/runtime/test_replaced.py", "tests/quantizers/test_gptq.py", "tests/quantizers/test_second_moments.py",
)  # fmt: skip
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-g", "-O1")
WRAPPER = """#!/bin/sh
exec cc "$@" {flags}
"""
CALLED = """
import natprec.native as native
native.compiled.SECONDS = 900
for name in native.runnable():
    library, why = native.variant(name)
    assert library is not None, why
    print("sanitized:", name)
"""


def main() -> None:
    """Compile, make sure that it is the sanitized library that runs, and run the tests."""
    given = sys.argv[1:] or list(TESTS)
    if given[0] in ("-h", "--help"):
        print(__doc__)
        return
    first = ("libasan.so", "libstdc++.so.6")  # without the second the sanitizer does not know how torch throws
    found = [
        subprocess.run(["cc", f"-print-file-name={name}"], check=True, capture_output=True, text=True).stdout.strip()
        for name in first
    ]
    with tempfile.TemporaryDirectory(prefix="natprec-sanitizers-") as folder:
        compiler = Path(folder) / "cc"
        compiler.write_text(WRAPPER.format(flags=" ".join(SANITIZERS)))
        compiler.chmod(0o700)
        env = {
            **os.environ,
            "CC": str(compiler),
            "XDG_CACHE_HOME": folder,
            "LD_PRELOAD": " ".join(str(Path(file).resolve()) for file in found),
            "ASAN_OPTIONS": "detect_leaks=0:verify_asan_link_order=0",  # Python frees little when it ends
            "UBSAN_OPTIONS": "print_stacktrace=1",
            "PYTHONPATH": str(ROOT),
        }
        subprocess.run([sys.executable, "-c", CALLED], check=True, env=env, cwd=ROOT)
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-x", "--capture=sys", *given], env=env, cwd=ROOT, check=False
        )
    sys.exit(done.returncode != 0)


if __name__ == "__main__":
    main()
