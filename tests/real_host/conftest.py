"""What the tests on the real host share."""

from typing import Any

import pytest

from real_host.models import tiny_sdxl


@pytest.fixture(scope="module")
def xl(host: Any) -> Any:
    """Return a MODEL of SDXL's class, with random weights and tiny widths."""
    return tiny_sdxl(host)
