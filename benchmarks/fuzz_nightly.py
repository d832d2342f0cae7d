"""Ten thousand forged artefacts, files and calls: the tests of tests/fuzz with more cases.

Run as `python benchmarks/fuzz_nightly.py [CASES]`; takes some 20 minutes on one core. The exit code
is that of the tests: 0 says that every case ended in a result or in one line, without a traceback,
and that no file was touched but the output that was named.
"""

import os
import subprocess
import sys
from pathlib import Path


def main() -> int:
    cases = sys.argv[1] if len(sys.argv) > 1 else "10000"
    root = Path(__file__).parents[1]
    command = [sys.executable, "-m", "pytest", "tests/fuzz", "-q", "--durations=20"]
    return subprocess.run(command, cwd=root, env={**os.environ, "EXCISE_FUZZ": cases}).returncode


if __name__ == "__main__":
    sys.exit(main())
