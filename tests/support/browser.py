"""A headless Chromium, where there is one: what a page looks like, and what its console says."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--hide-scrollbars",
    "--no-first-run",
    "--disable-extensions",
)
PROBE = """<!doctype html><iframe src="{name}" style="width:{width}px;height:900px;border:0"></iframe><script>
addEventListener("load", () => {{
  const page = document.querySelector("iframe").contentDocument, root = page.documentElement;
  const seen = [...page.querySelectorAll("body *")].filter(item => item.getClientRects().length);
  const outside = seen.filter(item => !item.closest(".scroll") && item.getBoundingClientRect().right > {width} + 1);
  const lettering = [...page.querySelectorAll("svg text")].map(item => item.getBoundingClientRect().height);
  const found = {{
    width: root.scrollWidth, outside: outside.map(item => item.outerHTML.slice(0, 90)), figures: page.querySelectorAll("figure svg").length,
    heights: [...page.querySelectorAll("figure svg")].map(item => item.getBoundingClientRect().height),
    smallest: Math.min(...lettering), paper: getComputedStyle(page.body).backgroundColor, ink: getComputedStyle(page.body).color,
  }};
  document.body.append(Object.assign(document.createElement("pre"), {{id: "found", textContent: JSON.stringify(found)}}));
}});
</script>"""


def chromium() -> str:
    """The browser; the test is skipped where there is none."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip(f"needs a browser ({', '.join(NAMES)}): make browser installs one on Debian")
    return found


def run(profile: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [chromium(), *OPTIONS, f"--user-data-dir={profile}", "--enable-logging=stderr", "--v=0", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if done.returncode:
        pytest.skip(f"the browser does not start here: {done.stderr[-200:]}")
    return done


def measured(page: Path, width: int, profile: Path, *, dark: bool = False) -> tuple[dict, list[str]]:
    """(widths, heights, colours of a page at this width; what the console said)."""
    probe = page.with_name(f"probe-{width}.html")
    probe.write_text(PROBE.format(name=page.name, width=width))
    scheme = ["--blink-settings=preferredColorScheme=0"] if dark else []
    done = run(
        profile, "--allow-file-access-from-files", "--virtual-time-budget=5000", *scheme, "--dump-dom", probe.as_uri()
    )
    probe.unlink()
    found = json.loads(
        re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.S)[1]
        .replace("&lt;", "<")
        .replace("&gt;", ">")
        .replace("&amp;", "&")
    )
    return found, [line for line in done.stderr.splitlines() if "CONSOLE" in line]
