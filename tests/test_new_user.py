"""A new user's path: clone, `make demo`, generate, serve, and a client that streams; in an empty environment.

The clone has a virtual environment of its own, which sees the packages of this one and the clone's natprec; no index
is asked. The model is tiny.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
import sysconfig
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEMPLATE = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}[assistant] "
CLIENT = """
import sys, openai
client = openai.OpenAI(base_url=sys.argv[1], api_key="none", max_retries=0)
asked = dict(model="demo-out", messages=[{"role": "user", "content": "abc def"}], temperature=0, max_tokens=6)
stream = client.chat.completions.create(stream=True, **asked)
said = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
assert said == client.chat.completions.create(**asked).choices[0].message.content, said
print(said)
"""


class NewUser:
    """Runs commands in a clone, with a HOME of its own and nothing else in the environment."""

    def __init__(self, place: Path) -> None:
        self.clone, self.home = place / "natprec", place / "home"
        self.home.mkdir()
        self.environment = {"HOME": str(self.home), "PATH": "/usr/local/bin:/usr/bin:/bin", "OMP_NUM_THREADS": "1"}

    def run(self, *command: object) -> subprocess.CompletedProcess[str]:
        """Run it to its end.

        Raises:
            AssertionError: it failed; says what it wrote.
        """
        done = subprocess.run(
            [*map(str, command)], cwd=self.clone if self.clone.exists() else self.home, env=self.environment,
            capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, timeout=900,
        )  # fmt: skip
        assert done.returncode == 0, (command, done.stdout[-3000:], done.stderr[-3000:])
        return done


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, text_file: Path) -> NewUser:
    """Who has cloned, installed, and run the demo."""
    for program in ("git", "make"):
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}")
    if not (ROOT / ".git").exists():
        pytest.skip("needs a git checkout")
    user = NewUser(tmp_path_factory.mktemp("user"))
    user.run("git", "clone", "--quiet", ROOT, user.clone)
    _with_changes(user.clone)
    user.run(sys.executable, "-m", "venv", ".venv")
    site = next((user.clone / ".venv").glob("lib/python*/site-packages"))
    (site / "clone.pth").write_text(f"{user.clone}\n{sysconfig.get_paths()['purelib']}\n")
    script = user.clone / ".venv" / "bin" / "natprec"
    script.write_text(f"#!{script.with_name('python')}\nfrom natprec.cli import main\n\nmain()\n")
    script.chmod(0o755)
    (user.clone / ".venv" / ".demo").touch()  # what `make demo` would install is there
    model = Path(shutil.copytree(tiny_folder, user.home / "tiny"))
    described = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps({**described, "chat_template": TEMPLATE}))
    user.run("make", "demo", f"MODEL={model}", "EPS=0.001", f"DATA={text_file}")
    return user


def _with_changes(clone: Path) -> None:
    """What is not committed yet is tested, too."""
    told = subprocess.run(
        ["git", "ls-files", "--modified", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True,
        check=True,
    ).stdout  # fmt: skip
    for name in filter(lambda name: (ROOT / name).is_file(), told.splitlines()):
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, clone / name)


@pytest.fixture(scope="module")
def address(user: NewUser) -> Iterator[str]:
    """Of `natprec serve demo-out`."""
    server = subprocess.Popen(
        [".venv/bin/natprec", "serve", "demo-out", "--port", "0"], cwd=user.clone, env=user.environment,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert server.stderr is not None
    try:
        told = server.stderr.readline()
        assert told.startswith("serving demo-out at http://127.0.0.1:"), told + server.stderr.read()
        yield told.rpartition(" ")[2].strip()
    finally:
        server.terminate()
        server.wait(30)


@pytest.mark.slow
def test_the_demo_writes_a_checkpoint_that_keeps_its_promise(user: NewUser) -> None:
    found = json.loads((user.clone / "demo-out" / "verification.json").read_text())
    assert found["verdict"] in ("pass", "pass-within-noise")
    printed = user.run(
        ".venv/bin/python", "-c", "import natprec, sys; print(natprec.__file__); print('torch' in sys.modules)"
    ).stdout.split()
    assert printed == [str(user.clone / "natprec" / "__init__.py"), "False"], "the clone's own, and quick to import"


@pytest.mark.slow
def test_it_generates(user: NewUser) -> None:
    told = user.run(".venv/bin/natprec", "generate", "demo-out", "--prompt", "abc", "--max-new-tokens", 4, "--json")
    assert 1 <= json.loads(told.stdout)["new_tokens"] <= 4


@pytest.mark.slow
def test_it_serves_a_streaming_answer(address: str) -> None:
    body = {"messages": [{"role": "user", "content": "abc def"}], "temperature": 0, "max_tokens": 6, "stream": True}
    request = urllib.request.Request(
        f"{address}/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        events = [line[6:] for line in answer.read().decode().splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    assert len(events) > 2
    assert json.loads(events[0])["object"] == "chat.completion.chunk"


@pytest.mark.slow
def test_the_openai_client_gets_a_streaming_answer(user: NewUser, address: str) -> None:
    found = importlib.util.find_spec("openai")
    if found is None or found.origin is None:
        pytest.skip("needs the openai package: pip install openai")
    where = str(Path(found.origin).parents[1])
    told = subprocess.run(
        [sys.executable, "-c", CLIENT, address], env={**user.environment, "PYTHONPATH": where}, capture_output=True,
        text=True, check=False, timeout=300,
    )  # fmt: skip
    assert told.returncode == 0, told.stderr[-3000:]
