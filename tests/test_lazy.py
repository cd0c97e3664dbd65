"""`import loclin` shows the library, and imports torch on first use alone."""

import subprocess
import sys

import pytest

import loclin


def test_every_public_name_is_there() -> None:
    for name in loclin.__all__:
        assert getattr(loclin, name) is not None
    assert {"CurvatureOperator", "linear_window", "load", "random_search"} <= set(dir(loclin))
    with pytest.raises(AttributeError, match="module 'loclin' has no attribute 'fly'"):
        _ = loclin.fly


def test_neither_the_package_nor_help_imports_torch() -> None:
    code = (
        "import sys, loclin, loclin.cli\n"
        "try: loclin.cli.main(['search', '--help'])\n"
        "except SystemExit: pass\n"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0
