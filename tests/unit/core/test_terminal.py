"""What comes from data steers no terminal, and an output that takes no more ends in one line."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import command
from vit_dist.core.log import log
from vit_dist.core.tables import columns, make_console, to_lines
from vit_dist.core.terminal import GuardedStream, OutputError, clean, cut

STEERING = [
    "\x1b]0;TITLE\x07",
    "\x1b[2J",
    "\x9b2J",
    "\x1b[8mhidden",
    "a\rb",
    "\x08\x08",
    "\u202eexe.gpj",
    "\x7f",
    "\u2066",
    "\udc1b",
]


@pytest.mark.parametrize("text", STEERING)
@pytest.mark.parametrize("colours", [False, True])
def test_what_steers_is_shown_as_an_escape(text: str, colours: bool) -> None:
    shown = clean(text, colours=colours)
    if not (colours and text.startswith("\x1b[8m")):
        assert shown.isprintable()
    assert clean(shown) == shown.replace("\x1b", "\\x1b")


def test_text_of_every_writing_tabs_ends_of_lines_and_colours_stay() -> None:
    text = "Straße 猫 عربي 👩‍👩‍👧 e\u0301\tx\n"
    assert clean(text) == text
    assert clean("\x1b[1;31mred\x1b[0m", colours=True) == "\x1b[1;31mred\x1b[0m"
    assert clean("\x1b[1;31mred\x1b[0m") == "\\x1b[1;31mred\\x1b[0m"


@given(st.text())
def test_cleaning_is_done_once_and_leaves_nothing(text: str) -> None:
    shown = clean(text)
    assert clean(shown) == shown
    assert not {"\x1b", "\x07", "\r", "\x9b", "\u202e"} & set(shown)
    shown.encode()


def test_a_message_has_a_bounded_length() -> None:
    assert cut("x" * 20_000) == "x" * 20_000
    assert cut("x" * 21_234) == "x" * 20_000 + " ... (1,234 more characters)"


@pytest.mark.parametrize("text", STEERING)
def test_lines_tables_and_consoles_are_clean(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    out, err = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stdout", GuardedStream(out, essential=True))
    monkeypatch.setattr(sys, "stderr", GuardedStream(err, essential=False))
    log(f"said {text}")
    print(text)
    print("\n".join(to_lines(columns([[text, "2"]], ["name", "n"]))))
    console = make_console()
    console.print(f"printed {text}", markup=False)
    console.print(columns([[text, "2"]], ["name", "n"]))
    told = out.getvalue() + err.getvalue()
    assert told.replace("\n", "").isprintable(), ascii(told)
    assert "said " in told
    assert "printed " in told


class Full(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")

    def fileno(self) -> int:
        return os.open(os.devnull, os.O_WRONLY)


def test_a_log_that_takes_no_more_costs_the_line_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    GuardedStream(Full(), essential=False).write("x")
    with pytest.raises(OutputError, match="cannot write the output: No space left on device"):
        GuardedStream(Full(), essential=True).write("x")
    monkeypatch.setattr(sys, "stderr", Full())
    log("nobody hears it")


VERBS = [
    "--help",
    "--version",
    "train --help",
    "list recipes",
    "config demo",
    "config demo --hash",
    "data info MANIFEST",
]


@pytest.mark.parametrize("verb", [*VERBS, "data order MANIFEST --count 200k"])
@pytest.mark.parametrize("where", ["/dev/full", "closed", "read only"])
def test_an_output_that_takes_no_more_ends_in_one_line(verb: str, where: str, small_set: str) -> None:
    words = command(*verb.replace("MANIFEST", small_set).split())
    redirect = {"/dev/full": "> /dev/full", "closed": ">&-", "read only": "1< /dev/null"}[where]
    done = subprocess.run(
        ["bash", "-c", f'"$@" {redirect}', "bash", *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stderr
    reason = "No space left on device" if where == "/dev/full" else "Bad file descriptor"
    assert done.stderr == f"vit-dist: error: cannot write the output: {reason}\n"


@pytest.mark.parametrize("redirect", ["2>&-", "2> /dev/full", "<&- 2>&-"])
def test_what_is_said_beside_the_output_is_worth_no_failure(redirect: str, tmp_path: Path) -> None:
    words = command("config", "demo", "--hash")
    done = subprocess.run(
        ["bash", "-c", f'"$@" {redirect}', "bash", *words], capture_output=True, text=True, check=False
    )
    assert (done.returncode, len(done.stdout)) == (0, 17), done.stdout
    words = command("config", "no-such-recipe")
    assert subprocess.run(["bash", "-c", f'"$@" {redirect}', "bash", *words], check=False).returncode == 2


def test_a_file_that_is_opened_does_not_become_the_output(tmp_path: Path) -> None:
    code = (
        "from vit_dist.core.terminal import guard_streams; guard_streams()\n"
        "file = open('kept', 'w'); file.write('mine'); file.close(); file = open('kept')\n"
        "import subprocess, sys; subprocess.run(['echo', 'not mine'], check=False)\n"
        "assert file.read() == 'mine'; assert file.fileno() > 2"
    )
    words = ["bash", "-c", '"$@" <&- >&- 2>&-', "bash", sys.executable, "-c", code]
    assert (
        subprocess.run(words, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(Path.cwd())}, check=False).returncode
        == 0
    )
    assert (tmp_path / "kept").read_text() == "mine"


def on_terminal(words: list[str], **variables: str) -> str:
    """What a command shows on a terminal."""
    ours, its = pty.openpty()
    process = subprocess.Popen(words, stdin=its, stdout=its, stderr=its, env={**os.environ, **variables})
    os.close(its)
    shown = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:
            break
        if not part:
            break
        shown += part
    os.close(ours)
    process.wait()
    return shown.decode()


def test_on_a_terminal_a_run_s_name_steers_nothing(tmp_path: Path) -> None:
    run = tmp_path / "x\x1b]0;TITLE\x07\x1b[2J"
    run.mkdir()
    (run / "status.json").write_text("{}")
    for words in (["status", "--runs", str(tmp_path)], ["list", "--runs", str(tmp_path)], ["status", str(run)]):
        shown = on_terminal(command(*words), TERM="xterm-256color", COLUMNS="200")
        assert "TITLE" in shown
        assert "\x1b]0" not in shown
        assert "\x1b[2J" not in shown
        assert "\x07" not in shown


def test_names_in_recipes_and_manifests_steer_nothing(tmp_path: Path, vit_dist: Callable[..., Any]) -> None:
    (tmp_path / "r.yaml").write_text('base: demo\n"\\e[2Jevil": 1\n')
    for words in (
        ["config", str(tmp_path / "r.yaml")],
        ["data", "info", f"{tmp_path}/\x1b[2J/manifest.json"],
        ["\x1b[2J"],
    ):
        done = vit_dist(*words)
        assert done.returncode in {1, 2}
        assert "\\x1b[2J" in done.stderr
        assert "\x1b" not in done.stdout + done.stderr
