"""The loop of `foveal chat`: lines in, answers out, and the commands that begin with a slash."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from foveal.cli.asked import citation_lines, place_lines, step_lines
from foveal.cli.chatting.talk import Answer, Outcome, Talk
from foveal.cli.output import INTERRUPTED, note, tell, write
from foveal.errors import FovealError
from foveal.text.events import ContentDelta, ReasoningDelta

HELP = """\
/ask QUESTION   look into the memory, and answer from the places that fit{asks}
/say MESSAGE    say something without a look at the memory
/places         those places of the last answer: who proposed them, how many tokens
/cite           the lines of the memory that the last answer came from
/fork [TURN]    go on behind that turn (default: the last but one), as another conversation; the old one stays
/why            what was found of the last prompts, and why not more
/new            begin again, as another conversation
/save NAME      save it under that name from now on
/help           this
/quit           end (also Ctrl-D); the conversation is saved
Ctrl-C ends an answer. A message that begins with a slash is written with two."""
ASKS = "; each message does so"
MOST_DIGITS = 12
"""Of the number of a turn."""
DIM, PLAIN = "\x1b[2m", "\x1b[0m"


class _Quit(Exception):
    """The person wants to leave."""


class Loop:
    """One person at one conversation. `saves`: each turn is saved when it ends.   as_json: each answer is one line of
    JSON.   begin: makes an empty conversation like this one."""

    def __init__(self, talk: Talk, *, saves: bool = True, as_json: bool = False) -> None:
        self.talk, self._saves, self._json = talk, saves, as_json
        self._terminal = sys.stdin.isatty() and sys.stdout.isatty() and not as_json
        self._answer: Answer | None = None
        self._stopped = self._at_prompt = self._failed = False
        self._outcome = Outcome(finish="")
        self._commands: dict[str, Callable[[str], None]] = {
            "ask": self._ask_memory,
            "say": self._say_plainly,
            "places": self._places,
            "cite": self._cite,
            "fork": self._fork,
            "why": lambda _: self.talk.why(),
            "new": lambda _: self._go_back(0),
            "save": self._save_as,
            "help": self._help,
            "quit": self._quit,
            "exit": self._quit,
        }

    def run(self) -> int:
        """Until the input ends; the exit code. Without a terminal it is 1 when a message failed."""
        if not self._terminal:
            for line in sys.stdin:
                if not self._take(line):
                    break
            return int(self._failed)
        with self._keyboard():
            return self._interactive()

    def _interactive(self) -> int:
        interrupted = False
        while True:
            try:
                line = self._ask()
            except EOFError:
                write("\n")
                return 0
            except KeyboardInterrupt:
                write("\n")
                if interrupted:
                    return INTERRUPTED
                interrupted = True
                note("once more to leave, or /quit")
                continue
            interrupted = False
            if not self._take(line):
                return 0

    def _ask(self) -> str:
        self._at_prompt = True
        try:
            return input(f"{len(self.talk.turns) + 1}> ")
        finally:
            self._at_prompt = False

    # ------------------------------------------------------------------ the keyboard

    @contextmanager
    def _keyboard(self) -> Iterator[None]:
        """Lines can be edited, and Ctrl-C ends an answer."""
        with suppress(ImportError):
            import readline

            readline.parse_and_bind("tab: complete")
            readline.set_completer(self._complete)
            readline.set_completer_delims(" ")
        before = signal.signal(signal.SIGINT, self._interrupt)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self._answer is not None and not self._stopped:
            self._stopped = True
            self._answer.stop()
        elif self._answer is not None or self._at_prompt:  # an answer that does not end, or a line that is given up
            raise KeyboardInterrupt

    def _complete(self, text: str, state: int) -> str | None:
        found = [f"/{name} " for name in self._commands if f"/{name}".startswith(text)] if text[:1] == "/" else []
        return found[state] if state < len(found) else None

    # ------------------------------------------------------------------ a line

    def _take(self, line: str) -> bool:
        """Do what a line says; whether to go on. What goes wrong is told, and the conversation goes on."""
        line = line.strip()
        try:
            if line.startswith("/") and not line.startswith("//"):
                self._command(line)
            elif line:
                self._message(line[1:] if line.startswith("//") else line)
        except _Quit:
            return False
        except FovealError as error:
            self._failed = True
            note(f"foveal: {error}")
        return True

    def _command(self, line: str) -> None:
        name, _, rest = line[1:].partition(" ")
        known = self._commands.get(name)
        if known is None:
            note(f"there is no command /{name}; /help tells of all, and // begins a message with a slash")
        else:
            known(rest.strip())

    def _message(self, text: str) -> None:
        if self.talk.zooms:
            self._answered(self.talk.ask(text, only=False), asked=True)
        else:
            self._answered(self.talk.say(text))

    def _answered(self, answer: Answer, *, asked: bool = False) -> None:
        """Show an answer, and keep it. `asked`: the memory was, too."""
        self._stopped, self._answer = False, answer
        try:
            self._show(answer)
        finally:
            self._answer = None
            answer.close()
        self._outcome = answer.outcome
        if not self._outcome.finish:
            note("stopped before anything was said; the message is dropped")
            return
        if self._json:
            found = {"found": False} if asked else {}
            said = {"conversation": self.talk.name, "turn": len(self.talk.turns)} | found | self._outcome.to_dict()
            write(json.dumps(said) + "\n")
        else:
            self._end(self._outcome, asked)
        if self._saves:
            self.talk.save(self.talk.name)

    def _show(self, answer: Answer) -> None:
        """The reply as it comes; reasoning, dimmed, on a terminal only."""
        thinking = False
        for event in answer:
            if isinstance(event, ReasoningDelta) and self._terminal:
                _raw("" if thinking else DIM)
                thinking = True
                write(event.text)
            elif isinstance(event, ContentDelta) and not self._json:
                if thinking:
                    _raw(f"{PLAIN}\n\n")
                    thinking = False
                write(event.text)
        if thinking:
            _raw(PLAIN)

    def _end(self, outcome: Outcome, asked: bool) -> None:
        write("\n")
        if not self._terminal:
            return
        if outcome.finish != "stop":
            why = "stopped" if outcome.finish == "stopped" else "as long as it may be (--max-tokens)"
            note(f"[{why}]")
        if outcome.asked is not None and outcome.asked.places:
            if outcome.finish == "stopped" and not outcome.asked.citations:
                return  # of half an answer nobody can say that no line says it
            for line in citation_lines(outcome.asked):
                tell(line)
            return
        if asked and self.talk.zooms and outcome.finish != "stopped":
            note("[nothing that was read fits this; it was answered without]")
        for cited in outcome.citations:
            note(f"  {cited}")

    # ------------------------------------------------------------------ commands

    def _ask_memory(self, question: str) -> None:
        if question:
            self._answered(self.talk.ask(question, only=True))
        else:
            note("ask something: /ask QUESTION")

    def _say_plainly(self, text: str) -> None:
        if text:
            self._answered(self.talk.say(text))
        else:
            note("say something: /say MESSAGE")

    def _places(self, rest: str) -> None:
        asked = self._outcome.asked
        if asked is None or not asked.places:
            note("the last answer was worded from no places; /ask QUESTION looks for some")
            return
        for line in (*place_lines(asked.places), *step_lines(asked)):
            tell(line)

    def _cite(self, rest: str) -> None:
        asked = self._outcome.asked
        if asked is not None and asked.places:
            for line in citation_lines(asked):
                tell(line)
        elif not self._outcome.citations:
            note("the last answer came from no lines of a memory")
        for cited in self._outcome.citations:
            tell(str(cited))

    def _help(self, rest: str) -> None:
        for line in HELP.format(asks=ASKS if self.talk.zooms else "").split("\n"):
            note(line)

    def _fork(self, rest: str) -> None:
        turns = len(self.talk.turns)
        if rest and not rest.isdecimal():
            note(f"{rest} is no turn; they are numbered from 1 to {turns}")
        elif len(rest) > MOST_DIGITS or (rest and int(rest) > turns):
            note(f"there is no turn {rest[:MOST_DIGITS]}; the conversation has {turns}")
        else:
            self._go_back(int(rest) if rest else max(turns - 1, 0))

    def _go_back(self, turn: int) -> None:
        old = self.talk.name
        self.talk.fork(turn, self._free_name())
        kept = f"; {old} is saved" if self._saves else ""
        note(f"{self.talk.name} goes on behind turn {turn}{kept}" if turn else f"{self.talk.name} begins{kept}")

    def _free_name(self) -> str:
        stem, dash, number = self.talk.name.rpartition("-")
        if not (dash and number.isdecimal() and len(number) < 4):
            stem = self.talk.name
        place = 2
        while self.talk.taken(f"{stem}-{place}"):
            place += 1
        return f"{stem}-{place}"

    def _save_as(self, name: str) -> None:
        if not name:
            note("name it: /save NAME")
            return
        self.talk.save(name)
        self._saves = True
        note(f"saved as {name}; each turn is from now on")

    def _quit(self, rest: str) -> None:
        raise _Quit


def _raw(codes: str) -> None:
    """What steers the terminal, and is ours."""
    sys.stdout.write(codes)
    sys.stdout.flush()
