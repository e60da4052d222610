"""The package as a user installs it: a wheel in an environment of its own runs the first commands."""

import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LEFT_OUT = shutil.ignore_patterns(".git", ".venv", "build", "runs", "tests", "*.egg-info", "recipes.lnk")


def run(*words: object, cwd: Path) -> str:
    ended = subprocess.run(list(map(str, words)), cwd=cwd, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.mark.slow
def test_the_wheel_runs_the_commands_of_the_first_pages(tmp_path: Path):
    """The packages that everest needs are those of this environment, so that the test needs no network."""
    source = tmp_path / "source"
    shutil.copytree(ROOT, source, ignore=LEFT_OUT, symlinks=True)
    (source / "everest" / "recipes").unlink(missing_ok=True)  # a link in some checkouts
    pip = (sys.executable, "-m", "pip", "--quiet")
    build = ("wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", tmp_path)
    run(*pip, *build, source, cwd=tmp_path)
    (wheel,) = tmp_path.glob("everest_video-*.whl")

    venv.create(tmp_path / "env", with_pip=False)
    python = tmp_path / "env" / "bin" / "python"
    (site,) = (tmp_path / "env" / "lib").glob("python*/site-packages")
    run(*pip, "install", "--no-deps", "--no-index", "--target", site, wheel, cwd=tmp_path)
    (site / "needs.pth").write_text(f"{sysconfig.get_path('purelib')}\n")

    home = run(python, "-c", "import everest; print(everest.__file__)", cwd=tmp_path)
    assert Path(home.strip()).is_relative_to(site)
    everest = (python, "-m", "everest_cli")
    assert run(*everest, "--version", cwd=tmp_path).startswith("everest ")
    assert "ok       python" in run(*everest, "doctor", cwd=tmp_path).lower()
    assert "ucf101" in run(*everest, "recipes", "list", cwd=tmp_path)
    assert "top-1" in run(python, ROOT / "docs" / "examples" / "own_data.py", tmp_path / "data", cwd=tmp_path)
