"""The README's commands are run as they stand there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).parent.parent


def test_a_strangers_path(tmp_path, media, tiny_llm):
    """From the README alone: featurize one's own clips, train, ask; then the page on Python goes on."""
    section = (REPO / "README.md").read_text().split("## Your own clips")[1].split("\n## ")[0]
    chat = re.search(r"```json\n(.*?)```", section, re.DOTALL)[1]
    commands = re.search(r"```bash\n(.*?)```", section, re.DOTALL)[1].strip().splitlines()
    assert len(commands) == 6
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "birthday.mp4").symlink_to(media / "red-loud.mp4")
    (tmp_path / "chat.json").write_text(chat)
    (tmp_path / "build").mkdir()
    (tmp_path / "build" / "smollm2").symlink_to(tiny_llm)  # `make demo` makes it from a package
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "PATH": path}
    said = {}
    for line in commands:
        done = subprocess.run(
            ["bash", "-c", line], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=1800, check=False
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        said[" ".join(line.split()[1:3])] = done.stdout
    assert "2 usable conversations (1 audio, 1 audio_visual)" in said["trainer train"]
    assert said["serve chat"].strip()
    page = (REPO / "docs" / "python.md").read_text()
    code = "\n".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL))
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "birthday-mp4 video" in done.stdout
    assert "['What happens here?']" in done.stdout
    assert "['Who sings?']" in done.stdout


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", *sorted(p.name for p in (REPO / "docs").glob("*.md"))]
)
def test_links_lead_somewhere(page):
    path = REPO / page if (REPO / page).exists() else REPO / "docs" / page
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
        assert "://" in target or (path.parent / target).exists(), target
