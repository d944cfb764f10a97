"""A report of a run whose folder has a name that is no Unicode."""

from __future__ import annotations

from pathlib import Path

import pytest

from chaos.dying import fresh
from oche.report import page


def test_a_folder_s_name_of_any_bytes_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = fresh(tmp_path / "run")
    monkeypatch.setattr(page, "made", lambda run: ("<p>runs/r\udcff</p>", {}))
    assert page.write(run).read_bytes() == b"<p>runs/r?</p>"
