"""The pages on parts of one's own: their code runs as it stands, is as short as promised, and passes the checks that they end with."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
PAGES = {"add_a_method": 40, "add_a_space": 60, "add_a_table": 40}
"""Page -> lines that a part may take."""


def blocks(page: str) -> list[tuple[str | None, str]]:
    """(file name, or None for what is run, code) of each Python block."""
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    found = []
    for code in re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL):
        first, _, rest = code.partition("\n")
        name = first.removeprefix("# ") if re.fullmatch(r"# \w+\.py", first) else None
        found.append((name, rest if name else code))
    return found


@pytest.mark.parametrize("page", PAGES)
def test_the_page_s_code_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    files = [(name, code) for name, code in blocks(page) if name]
    for name, code in files:
        assert len(code.strip().splitlines()) <= PAGES[page], name
        (tmp_path / name).write_text(code)
    before = set(sys.modules)
    try:
        for name, code in blocks(page):
            if name is None:
                exec(compile(code, f"{page}.md", "exec"), {"__name__": "page"})  # noqa: S102
    finally:
        for name, _ in files:
            sys.modules.pop(name.removesuffix(".py"), None)
    assert before


@pytest.mark.parametrize("page", PAGES)
def test_the_page_ends_with_a_check(page: str) -> None:
    name, code = blocks(page)[-1]
    assert name is None
    assert re.search(rf"^check_{page.removeprefix('add_a_')}\(", code, flags=re.MULTILINE)
    last = (DOCS / f"{page}.md").read_text(encoding="utf-8").split("\n## ")[-1]
    assert last.startswith("Check it\n")
