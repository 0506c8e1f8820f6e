"""What ignore files say, held against git on random trees.

The same 120 trees in the ordinary run; with FOVEAL_SOAK 5,000 new ones, from a seed that a failure names. Every tree is
a folder of one repository, so one git process answers for all.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest

from foveal.sources import git, read_source

SOAK = bool(os.environ.get("FOVEAL_SOAK"))
TREES = 5000 if SOAK else 120
SEED = int(os.environ.get("FOVEAL_FUZZ_SEED") or (random.SystemRandom().randrange(10**9) if SOAK else 1))
BATCH = 500

NAMES = [
    *(b"a", b"b", b"ab", b"c", b"a.py", b"b.py", b"b.c", b"a b", b"a ", b"a\t", b"a1", b"A", b"-", b"#a", b"!a", b"a]"),
    *(b"[a", b"a\\b", b"*", b"?", b"\xc3\xa9", b"\xff", b"a\rb", b"a\r", b"\x0ca", b"a\n", b"a\xe2\x80\xa8b", b"\x85"),
]
PIECES = [
    *(b"a", b"b", b"c", b"*", b"?", b"**", b"/", b"/", b".py", b".c", b"[ab]", b"[!a]", b"[^a]", b"[a-c]", b"[c-a]"),
    *(b"[[:digit:]]", b"[[:alpha:]]", b"[[:upper:]x]", b"[[:space:]]", b"[[:punct:]]", b"[[:foo:]]", b"[[:alpha:]"),
    *(b"[]a]", b"[a\\]b]", b"[\\a-c]", b"[a-]", b"[-a]", b"[!/]", b"[a/b]", b"[", b"]", b"\\", b"\\*", b"\\ ", b" "),
    *(
        b"\t",
        b"\r",
        b"\x0c",
        b"#",
        b"!",
        b"\\#",
        b"\\!",
        b"\xc3\xa9",
        b"\xff",
        b"-",
        b"1",
        b"A",
        b"**/",
        b"/**",
        b"***",
    ),
]
USUAL = [
    *(b"*", b"!*/", b"!*.py", b"!.gitignore", b"*/", b"**/", b"**", b"!**/", b"a/", b"/a", b"a/*", b"!a/b", b"a/**"),
    *(
        b"**/b",
        b"!b",
        b"b/",
        b"/b/c",
        b"!c",
        b"*.py",
        b"!a/",
        b"a/**/b",
        b"# x",
        b"",
        b"*.txt\t",
        b"b ",
        b"b\\ ",
        b"c\r",
    ),
]


def pattern(dice: random.Random) -> bytes:
    if dice.random() < 0.5:
        return dice.choice(USUAL)
    return dice.choice([b"", b"", b"!"]) + b"".join(dice.choice(PIECES) for _ in range(dice.randint(1, 5)))


def rules(dice: random.Random) -> bytes:
    start = dice.choice([b"", b"", b"", b"\xef\xbb\xbf"])
    ends = dice.choice([b"\n", b"\n", b"\r\n"])
    return start + ends.join(pattern(dice) for _ in range(dice.randint(1, 5))) + dice.choice([b"", ends])


def grow(folder: bytes, dice: random.Random, depth: int = 0) -> None:
    os.mkdir(folder)
    if dice.random() < (0.9 if depth == 0 else 0.35):
        (Path(os.fsdecode(folder)) / ".gitignore").write_bytes(rules(dice))
    for name in dice.sample(NAMES, dice.randint(1, 6)):
        if depth < 3 and dice.random() < 0.4:
            grow(folder + b"/" + name, dice, depth + 1)
        else:
            Path(os.fsdecode(folder + b"/" + name)).write_bytes(b"x\n")


def listed(root: Path) -> dict[str, set[str]]:
    """What git has of each tree."""
    env = {"PATH": os.environ["PATH"], "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1", "HOME": "/nowhere"}
    arguments = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    output = subprocess.run(arguments, check=True, capture_output=True, env=env).stdout
    found = defaultdict(set)
    for path in os.fsdecode(output).split("\0")[:-1]:
        tree, _, inner = path.partition("/")
        found[tree].add(inner)
    return found


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git to compare with")
def test_ignore_files_mean_what_git_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        os.mkdir(os.fsencode(tmp_path) + b"/\xff")
    except OSError:
        pytest.skip("this file system takes only text as names")
    for start in range(0, TREES, BATCH):
        root = tmp_path / str(start)
        subprocess.run(["git", "init", "-q", str(root)], check=True)
        trees = range(SEED + start, SEED + min(TREES, start + BATCH))
        for tree in trees:
            grow(os.fsencode(root / str(tree)), random.Random(tree))
        expected = listed(root)
        with monkeypatch.context() as patch:
            patch.setattr(git, "ask", lambda *_, **__: git.Answer(None))
            for tree in trees:
                found = {file.path for file in read_source(root / str(tree)).candidates()}
                kept = {path for path in expected[str(tree)] if os.path.getsize(root / str(tree) / path)}
                assert found == kept, f"tree {tree} of {root}"
        shutil.rmtree(root)
