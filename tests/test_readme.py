"""The documents do what they say: commands run, options exist, links lead somewhere, the map shows the folders."""

from __future__ import annotations

import itertools
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

import natprec
from natprec.cli import app
from tests.conftest import made_up_text
from tests.run_command import natprec as command
from tests.vision_language import pictures, saved

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = ["README.md", "CONTRIBUTING.md", *(f"docs/{page.name}" for page in sorted((ROOT / "docs").glob("*.md")))]
HUB_ID = "HuggingFaceTB/SmolLM2-135M"
VLM_ID = "llava-hf/llava-1.5-7b-hf"
FEW = {"quantize": "--tokens 512 --eval-tokens 512", "measure": "--tokens 512", "apply": "--tokens 512",
       "inspect": "--tokens 512",
       "verify": "--eval-tokens 512", "compare": "--tokens 512 --eval-tokens 512"}  # fmt: skip
LONGEST = 9 * 1024
"""Bytes of the README: it is read in one sitting; the rest is in docs/."""

WIDTH = 120


def blocks_to_test() -> list[list[str]]:
    """The commands marked as tests, of the README first: the other pages use its files."""
    texts = [(ROOT / page).read_text(encoding="utf-8") for page in PAGES]
    found = (re.findall(r"<!-- test -->\n```bash\n(.*?)\n```", text, re.DOTALL) for text in texts)
    return [block.split("\n") for block in itertools.chain(*found)]


def folders_of_the_map() -> set[str]:
    """The folders that the README's map lists; those of natprec are indented below it."""
    block = re.search(r"<!-- map -->\n```\nnatprec/\n(.*?)\n```\n<!-- /map -->", README, re.DOTALL)
    assert block is not None
    inner = re.findall(r"^  (\w+)/ +\S", block[1], re.MULTILINE)
    outer = re.findall(r"(\w+)/", block[1].split("\n")[-1])
    return {f"natprec/{name}" for name in inner} | set(outer)


def folders_of_the_tree() -> set[str]:
    """The packages directly under natprec, and the folders beside it that hold files of the repository."""
    packages = {f"natprec/{file.parent.name}" for file in (ROOT / "natprec").glob("*/*.py")}
    return packages | {
        name for name in ("docs", "model_cards", "recipes", "scripts", "tests") if (ROOT / name).is_dir()
    }


def test_the_readme_is_short() -> None:
    assert len(README.encode()) <= LONGEST


def test_the_map_lists_the_folders() -> None:
    assert folders_of_the_map() == folders_of_the_tree()


@pytest.mark.parametrize("page", PAGES)
def test_lines_fit(page: str) -> None:
    """Tables, and code that is copied, are as wide as they must be."""
    text = re.sub(r"^```.*?^```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    lines = [line for line in text.split("\n") if not line.startswith(("|", "    "))]
    assert [line for line in lines if len(line) > WIDTH] == []


@pytest.mark.parametrize("page", PAGES)
def test_no_page_names_a_folder_of_the_machine_that_wrote_it(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert re.findall(r"/tmp/\S*|/home/\S*|/root/\S*", text) == []


def test_the_commands_run(
    tmp_path: Path, tiny_folder: Path, tiny_tokenizer: Any, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In order, in one folder, on tiny models with few tokens."""
    sees = saved("llava", tiny_tokenizer, tmp_path / "models" / "llava")
    pictures(tmp_path / "photos")
    smaller = {HUB_ID: str(tiny_folder), VLM_ID: str(sees), "--sequence-length 704": "--sequence-length 128"}
    monkeypatch.chdir(tmp_path)
    Path("calib.txt").write_text(text_file.read_text())
    Path("test.txt").write_text(made_up_text(30_000, seed=7))
    Path("questions.jsonl").write_text('{"query": "a b", "choices": ["c", "d"], "gold": 0}\n' * 3)
    ran = set()
    for line in itertools.chain(*blocks_to_test()):
        assert any(name in line for name in (HUB_ID, VLM_ID)) or "--model" not in line, "this test has no other model"
        for real, tiny in smaller.items():
            line = line.replace(real, tiny)
        program, *arguments = shlex.split(line)
        assert program == "natprec"
        result = command(*arguments, *shlex.split(FEW.get(arguments[0], "")))
        assert result.code == 0, (line, result.err)
        ran.add(arguments[0])
    commands = {registered.callback.__name__ for registered in app.registered_commands if registered.callback}
    assert ran == commands  # of serve its help: tests/serving runs it


@pytest.mark.parametrize("target", re.findall(r"^    make (\w+)", README, re.MULTILINE))
def test_the_make_targets_exist(target: str) -> None:
    done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_python_example_is_the_packages_own() -> None:
    block = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert block is not None
    own = {" ".join(line.split()) for line in (natprec.__doc__ or "").split("\n")}
    for line in filter(None, block[1].split("\n")):
        assert " ".join(line.split()) in own, "tests/test_api.py runs it from there"


def anchor(title: str) -> str:
    """Where a link to a heading leads, as GitHub makes it of the title."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def test_the_log_has_an_index_of_all_entries() -> None:
    """Each entry is in it under its title, its mark included; no line leads elsewhere."""
    index, _, entries = (ROOT / "LOG.md").read_text(encoding="utf-8").partition("\n## 2")
    titles = re.findall(r"^## (\d{4}-\d\d-\d\d: .*)$", "## 2" + entries, re.MULTILINE)
    listed = re.findall(r"^- (\d{4}-\d\d-\d\d): \[(.*)\]\(#(.*)\)$", index, re.MULTILINE)
    assert {f"{date}: {title}" for date, title, _ in listed} == set(titles)
    assert [target for date, title, target in listed if target != anchor(f"{date}: {title}")] == []


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    file = ROOT / page
    for target, place in re.findall(r"\]\(([^)#]*)(?:#([^)]*))?\)", file.read_text(encoding="utf-8")):
        if target.startswith("https://"):
            continue
        found = (file.parent / target) if target else file
        assert found.exists(), target
        if place:
            titles = re.findall(r"^#+ (.*)$", found.read_text(encoding="utf-8"), re.MULTILINE)
            assert place in map(anchor, titles), f"{target}#{place}"


@pytest.mark.parametrize("page", PAGES)
def test_sources_that_documents_name_exist(page: str) -> None:
    """Those of the repository; folders of natprec's output have others under the same name."""
    text = (ROOT / page).read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:natprec|scripts|tests|docs|recipes)/[\w/.-]+\.(?:py|toml|md))", text))
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_options_in_the_documents_exist(page: str) -> None:
    """Of natprec's commands and of the scripts; those of other programs are few, and listed here."""
    others = {"--no-deps", "--extra-index-url", "--model-path"}
    others |= {"--multi_gpu", "--num_processes", "--nproc-per-node", "--nnodes", "--node-rank", "--master-addr",
               "--master-port", "--nodes", "--ntasks-per-node", "--gpus-per-node", "--cpus-per-task",
               "--requeue"}  # fmt: skip
    others |= {"--local-dir", "--model-path"}
    known = {"--help"}
    for registered in app.registered_commands:
        assert registered.callback is not None
        known |= set(re.findall(r"--[\w-]+", command(registered.callback.__name__, "--help").out))
    for script in (ROOT / "scripts").glob("*.py"):
        known |= set(re.findall(r'add_argument\(\s*"(--[\w-]+)"', script.read_text(encoding="utf-8")))
    given = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", (ROOT / page).read_text(encoding="utf-8")))
    assert given - known - others == set()
