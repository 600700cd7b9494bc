"""The reader of consoles, and the comparison that lets pass only what varies."""

import pytest

from tests.docs.console import Names, match, parse, replaced

PAGE = """\
# A page

```console
$ podway lab up --nodes 2 \\
    --pool 10.0.0.0/8     # dual stack
$ ping -c 1 10.244.1.10
1 received

rtt min/avg/max/mdev = 0.045/0.045/0.045/0.000 ms
```

```yaml
$ not: a command
```

```console on=node1 exit=1
# ip route
```
"""


def test_a_page_is_read() -> None:
    first, second = parse(PAGE)
    assert [step.bare for step in first.steps] == [
        "podway lab up --nodes 2 \\\n    --pool 10.0.0.0/8",
        "ping -c 1 10.244.1.10",
    ]
    assert first.steps[1].output == ["1 received", "", "rtt min/avg/max/mdev = 0.045/0.045/0.045/0.000 ms"]
    assert (second.node, second.status, second.steps[0].output) == ("node1", 1, [])


def test_outputs_are_replaced_where_they_stand() -> None:
    first, second = parse(PAGE)
    page = replaced(PAGE, [(first.steps[1], ["nothing"]), (second.steps[0], ["default"])])
    assert "10.244.1.10\nnothing\n```" in page
    assert "# ip route\ndefault\n```" in page
    assert [len(console.steps) for console in parse(page)] == [2, 1]


@pytest.mark.parametrize(
    ("shown", "real"),
    [
        (["a"], ["a"]),
        (["…"], []),
        (["a", "…", "z"], ["a", "b", "c", "z"]),
        (["abc…"], ["abcdef"]),
        (["rtt min/avg/max/mdev = 0.045/0.045/0.045/0.000 ms"], ["rtt min/avg/max/mdev = 1.1/2.20/3.3/0.1 ms"]),
        (["took 37µs, 5 hops"], ["took 1.25 ms, 5 hops"]),
        (["up 36s, 52 MiB"], ["up 2m59s, 56 MiB"]),
        (["dev pway111111111aa", "dev pway111111111aa"], ["dev pway222222222bb", "dev pway222222222bb"]),
        (["is at 02:2b:8d:78:60:8f"], ["is at 02:55:1c:45:18:53"]),
        (["REACHABLE at 10:11:12.5"], ["REACHABLE at 23:59:59"]),
        (["took 9 µs in all"], ["took 12", "   µs in all"]),
        (["took 9 µs; all the way"], ["took 1234 µs; all", "    the way"]),
        (["a", "…", "m n", "…", "z"], ["a", "b", "m", "m n", "z"]),
        (["…", "end"], ["end"]),
        (["a", "…"], ["a", "b"]),
        (["ready   5 s   yes"], ["ready   15 s  yes"]),
    ],
)
def test_what_varies_passes(shown: list[str], real: list[str]) -> None:
    assert match(shown, real, Names()) is not None


@pytest.mark.parametrize(
    ("shown", "real"),
    [
        (["a"], ["b"]),
        (["a"], ["a", "b"]),
        (["a", "b"], ["a"]),
        ([], ["a"]),
        (["a", "…", "z"], ["a", "b"]),
        (["a", "…", "a"], ["a"]),
        (["a", "…", "m", "…", "z"], ["a", "z"]),
        (["abc…"], ["abdef"]),
        (["took 37µs, 5 hops"], ["took 37µs, 6 hops"]),
        (["10.244.1.10: TTL 62, 1500 bytes"], ["10.244.1.10: TTL 62, 1450 bytes"]),
        (["dev pway111111111aa", "dev pway111111111aa"], ["dev pway222222222bb", "dev pway333333333cc"]),
        (["dev pway111111111aa", "dev pway222222222bb"], ["dev pway333333333cc", "dev pway333333333cc"]),
    ],
)
def test_what_is_another_thing_does_not(shown: list[str], real: list[str]) -> None:
    assert match(shown, real, Names()) is None


def test_real_names_are_shown_as_the_page_has_them() -> None:
    names = match(["dev pway111111111aa"], ["dev pway222222222bb"], Names())
    assert names is not None
    assert (
        names.show("route dev pway222222222bb and pway999999999ff")
        == "route dev pway111111111aa and pway999999999ff"
    )
