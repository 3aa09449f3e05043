from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.chromium import NAMES, Chromium, find_chromium


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    """One browser for all tests of the session; they skip where none is installed."""
    program = find_chromium()
    if program is None:
        pytest.skip(f"no Chromium on PATH (looked for {', '.join(NAMES)}), and CHROMIUM names none")
    browser = Chromium(program, tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()
