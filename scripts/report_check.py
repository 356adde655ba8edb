"""Opens a report in headless Chromium without network: errors of its scripts, and findings of axe-core.

    python scripts/report_check.py report.html [--axe axe.min.js] [--shots FOLDER]

Chromium is Debian's package; axe.min.js is in `npm pack axe-core`. With --shots the page is photographed in light and
dark. Exit code 1 where a script failed or axe-core calls something serious or critical.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from html import unescape
from pathlib import Path

BROWSER = [
    "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--virtual-time-budget=20000",
    "--host-resolver-rules=MAP * ~NOTFOUND",
]  # fmt: skip

RUN = """axe.run(document, {resultTypes: ["violations"]}).then((found) => {
  const box = document.createElement("pre");
  box.id = "axe-found";
  box.textContent = JSON.stringify(found.violations.map(({id, impact, nodes}) => ({id, impact,
    nodes: nodes.map((node) => node.html.slice(0, 120))})));
  document.body.append(box);
});"""


def main() -> None:
    """Both colour schemes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path)
    parser.add_argument("--axe", type=Path)
    parser.add_argument("--shots", type=Path)
    given = parser.parse_args()
    page = given.report.read_text(encoding="utf-8")
    failed = False
    for dark in (False, True):
        name = "dark" if dark else "light"
        errors, found = opened(page, given.axe, dark)
        serious = [each for each in found if each["impact"] in ("serious", "critical")]
        print(
            f"{name}: {len(errors)} console errors; axe-core: {len(found)} findings, {len(serious)} serious or critical"
        )
        for line in [*errors, *(f"{each['impact']} {each['id']}: {each['nodes'][0]}" for each in found)]:
            print(f"  {line}")
        failed |= bool(errors or serious)
        if given.shots is not None:
            given.shots.mkdir(parents=True, exist_ok=True)
            size = ["--window-size=1280,4400", f"--screenshot={given.shots.resolve() / f'report-{name}.png'}"]
            subprocess.run(
                [*BROWSER, *scheme(dark), *size, given.report.resolve().as_uri()], capture_output=True, check=True
            )
    raise SystemExit(int(failed))


def opened(page: str, axe: Path | None, dark: bool) -> tuple[list[str], list[dict[str, object]]]:
    """Errors on the console, and what axe-core finds where it is given."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "page.html"
        extra = "" if axe is None else f"<script>{axe.read_text(encoding='utf-8')}</script><script>{RUN}</script>"
        file.write_text(page.replace("</body>", f"{extra}</body>"), encoding="utf-8")
        done = subprocess.run(
            [*BROWSER, *scheme(dark), "--dump-dom", file.as_uri()], capture_output=True, text=True, check=True
        )
    errors = re.findall(r"CONSOLE.*", done.stderr)
    match = re.search(r'<pre id="axe-found">(.*?)</pre>', done.stdout, re.S)
    if axe is not None and match is None:
        errors.append("axe-core did not finish")
    return errors, [] if match is None else json.loads(unescape(match[1]))


def scheme(dark: bool) -> list[str]:
    """Chromium's switch for `prefers-color-scheme`."""
    return [f"--blink-settings=preferredColorScheme={0 if dark else 1}"]


if __name__ == "__main__":
    main()
