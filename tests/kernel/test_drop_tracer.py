"""Where the kernel's functions stand, as the tracer of drops reads it."""

from pathlib import Path

import pytest

from podway.kernel.bpf.drops import place_of

SYMBOLS = "ffff0010 T ip_before\nffff0020 t ip_error\nffff0020 t ip_alias\nffff0050 T ip_after\n"


@pytest.mark.parametrize(
    ("symbols", "place"),
    [
        (SYMBOLS, (0xFFFF0020, 0xFFFF0050)),
        (SYMBOLS.replace("ip_error", "ip_errors"), (0, 0)),
        ("00000000 t ip_error\n00000000 T ip_after\n", (0, 0)),
        ("ffff0020 t ip_error\n", (0, 0)),
        ("", (0, 0)),
        (None, (0, 0)),
    ],
    ids=["told", "no such function", "hidden", "the last", "empty", "no list"],
)
def test_a_functions_place_is_that_of_the_list_or_not_known(
    tmp_path: Path, symbols: str | None, place: tuple[int, int]
) -> None:
    found = tmp_path / "kallsyms"
    if symbols is not None:
        found.write_text(symbols)
    assert place_of("ip_error", found) == place
