"""Which tests there are, and which count: none that is skipped, and those for a card on a machine with little else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.kernels import host

SKIPPING = """
import pytest

def test_skips():
    pytest.skip("no compiler")

@pytest.mark.skipif(True, reason="by a mark")
def test_marked():
    pass

@pytest.mark.xfail(reason="known to fail")
def test_expected():
    assert False

@pytest.mark.xfail(reason="known to fail")
def test_unexpected():
    pass

def test_passes():
    pass
"""


def test_a_skip_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(Path(__file__).with_name("conftest.py").read_text())
    (tmp_path / "test_skipping.py").write_text(SKIPPING)
    (tmp_path / "test_module.py").write_text("import pytest\npytest.importorskip('no_such_package')\n")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--rootdir", tmp_path, tmp_path]
    found = subprocess.run([*command, "--continue-on-collection-errors"], capture_output=True, text=True, cwd=tmp_path)
    assert found.returncode == 1
    assert (
        found.stdout.splitlines()[-1].strip("= ").startswith("3 failed, 1 passed, 2 errors in")
    )  # a mark is met before the test
    for reason in ("no compiler", "by a mark", "known to fail", "no_such_package"):
        assert reason in found.stdout, reason


def test_a_card_s_tests_need_few_packages() -> None:
    missing = ["safetensors", "tokenizers", "transformers", "diffusers", "imageio_ffmpeg", "cupy", "ftfy", "psutil"]
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({missing})); import pytest;"
        "sys.exit(pytest.main(['-p', 'no:cacheprovider', '-m', 'gpu', 'tests/gpu', '--collect-only', '-q']))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=host.SOURCES.parent)
    assert found.returncode == 0, found.stdout
    assert "tests/gpu/test_hopper_sizes.py::test_true_size" in found.stdout
