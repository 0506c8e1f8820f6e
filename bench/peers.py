"""The same checkpoint through Foveal, llama.cpp and transformers, in turn, in one run.

    python bench/peers.py setup --dir build/peers
    python bench/peers.py run --dir build/peers --preset nano-bench

Timings of one program an hour after those of another say little, so all of them are open at once and take turns, depth
by depth and round by round; the medians count, and every timing carries the number of cores that anybody else kept busy
meanwhile. docs/benchmarks.md says what is compared with what.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from peer.setup import set_up
from peer.worker import CHUNK

from foveal.cli.output import parse_count, show_bytes
from foveal.cli.render import results, table
from foveal.config import preset as preset_config
from foveal.measure import OtherWork, cores, machine_facts

PRESETS = ("nano-bench", "flash-slice")
PEERS = ("foveal", "llama.cpp", "transformers")
DTYPES = {"nano-bench": "float32", "flash-slice": "bfloat16"}
"""What transformers computes in: what is faster."""
DISTURBED = 0.05
"""Cores that others may keep busy while something is timed."""
HERE = Path(__file__).resolve().parent


class Process:
    """One program in a process of its own, spoken to through `peer.worker`'s protocol."""

    def __init__(self, name: str, folder: Path, preset: str, threads: int) -> None:
        self.name = name
        script = HERE / "peer" / f"{name.replace('.', '_')}_peer.py"
        python = folder / "venv" / "bin" / "python" if name == "llama.cpp" else Path(sys.executable)
        self._child = subprocess.Popen(
            [str(python), str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.facts = self.ask(
            threads=threads,
            checkpoint=str(folder / "checkpoints" / preset),
            plain=str(folder / "checkpoints" / f"{preset}-plain"),
            gguf=str(folder / "gguf" / f"{preset}.gguf"),
            dtype=DTYPES[preset],
            **_shape(preset),
        )

    def ask(self, **request: Any) -> Any:
        """Send one request and wait for its answer. Raises `SystemExit` when the program ended instead."""
        assert self._child.stdin is not None and self._child.stdout is not None
        try:
            self._child.stdin.write(json.dumps(request) + "\n")
            self._child.stdin.flush()
            answer = self._child.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise SystemExit(f"{self.name} ended with code {self._child.wait()}; what it said is above")
        return json.loads(answer)

    def stop(self) -> None:
        """End it."""
        self._child.terminate()
        self._child.wait()


def _shape(name: str) -> dict[str, Any]:
    """What a program's worker has to know of the model's cache."""
    config = preset_config(name)
    ratios = config.compress_ratios[: config.num_hidden_layers]
    return {"head_dim": config.head_dim, "index_head_dim": config.index_head_dim, "compress_ratios": list(ratios)}


@contextmanager
def opened(names: list[str], folder: Path, preset: str, threads: int) -> Iterator[list[Process]]:
    """The programs, one after the other opened, all of them open."""
    with ExitStack() as stack:
        processes = []
        for name in names:
            say(f"opening {preset} in {name}")
            processes.append(Process(name, folder, preset, threads))
            stack.callback(processes[-1].stop)
        yield processes


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    """The whole comparison as a document: `runs` one by one, `rows` their medians and ratios."""
    depths = sorted({parse_count(depth) for depth in arguments.depths.split(",")})
    runs: list[dict[str, Any]] = []
    with opened(arguments.peers.split(","), arguments.dir, arguments.preset, arguments.threads) as processes:
        facts = {process.name: process.facts for process in processes}
        for depth in depths:
            able = [process for process in processes if prepared(process, depth, arguments)]
            for number in range(arguments.rounds):
                for process in able:
                    runs.append(undisturbed(process, depth, number, arguments))
    return {
        "preset": arguments.preset,
        "threads": arguments.threads,
        "machine": machine_facts(),
        "programs": facts,
        "rows": [row(depth, runs) for depth in depths],
        "runs": runs,
    }


def prepared(process: Process, depth: int, arguments: argparse.Namespace) -> bool:
    """Bring it to shortly before `depth`; False for what it cannot do, or would take too long for."""
    jump = depth > arguments.grow_to
    if jump and process.name == "transformers":
        return False
    say(f"{process.name}: {'jumping' if jump else 'reading'} to {depth:,}")
    process.ask(do="prepare", depth=depth, jump=jump)
    return True


def undisturbed(process: Process, depth: int, number: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """The first timing that nobody disturbed, or the least disturbed one of those made in `--patience` seconds."""
    end = time.monotonic() + arguments.patience
    wait_for_quiet(end)
    found = [one(process, depth, number, arguments.decode)]
    while (found[-1]["other_cores"] or 0.0) > DISTURBED and time.monotonic() < end:
        wait_for_quiet(end)
        found.append(one(process, depth, number, arguments.decode))
    return min(found, key=lambda run: run["other_cores"] or 0.0)


def wait_for_quiet(end: float) -> None:
    """Return when the machine was idle for a second, or at `end`."""
    while time.monotonic() < end:
        others = OtherWork()
        time.sleep(1)
        if (others.cores() or 0.0) <= DISTURBED:
            return


def one(process: Process, depth: int, number: int, decode: int) -> dict[str, Any]:
    """One timing, with the cores that others kept busy while it ran."""
    others, began = OtherWork(), time.monotonic()
    measured = process.ask(do="measure", depth=depth, decode=decode)
    busy, passed = others.cores(), time.monotonic() - began
    used = measured.pop("cpu_seconds") / passed
    said = {"program": process.name, "depth": depth, "round": number, **measured}
    said["other_cores"] = None if busy is None else max(0.0, busy - used)
    say(
        f"  {process.name} at {depth:,}: reading {measured['prefill_tok_s']:.1f}, decoding "
        f"{measured['decode_tok_s']:.1f} tok/s (others busy: {said['other_cores'] or 0.0:.2f} cores)"
    )
    return said


def row(depth: int, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians of one depth by program, and how many times a peer's rate Foveal's is."""
    made: dict[str, Any] = {"depth": depth}
    for kind in ("prefill_tok_s", "decode_tok_s", "peak_bytes"):
        found = {}
        for name in PEERS:
            values = [run[kind] for run in runs if run["depth"] == depth and run["program"] == name]
            if values:
                found[name] = statistics.median(values)
        made[kind] = found
        if kind != "peak_bytes" and "foveal" in found:
            ours = found["foveal"]
            made[f"{kind}_ratio"] = {name: ours / theirs for name, theirs in found.items() if name != "foveal"}
    return made


def show(document: dict[str, Any]) -> None:
    """The document as a table."""
    others = [name for name in PEERS[1:] if name in document["programs"]]
    shown = table("depth>", "", *(f"{name}>" for name in PEERS), *(f"x {name}>" for name in others))
    for made in document["rows"]:
        for kind, label in (("prefill_tok_s", "reading tok/s"), ("decode_tok_s", "decoding tok/s")):
            rates = [f"{made[kind][name]:,.1f}" if name in made[kind] else "-" for name in PEERS]
            ratios = made.get(f"{kind}_ratio", {})
            shown.add_row(
                f"{made['depth']:,}", label, *rates, *(f"{ratios[n]:.2f}" if n in ratios else "-" for n in others)
            )
        peaks = [show_bytes(made["peak_bytes"][n]) if n in made["peak_bytes"] else "-" for n in PEERS]
        shown.add_row("", "peak resident", *peaks, *("" for _ in others))
    out = results()
    out.print(f"{document['preset']}, {document['threads']} threads, {document['machine']['cpu']}; medians\n")
    out.print(shown)
    busy = max((run["other_cores"] or 0.0 for run in document["runs"]), default=0.0)
    out.print(f"\nother processes kept up to {busy:.2f} cores busy meanwhile")


def say(message: str) -> None:
    """One line about the work, on stderr."""
    print(message, file=sys.stderr, flush=True)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Compare Foveal with llama.cpp and transformers.")
    commands = parser.add_subparsers(dest="command", required=True)
    setup = commands.add_parser("setup", help="compile llama.cpp and make the checkpoints; goes on where it stopped")
    setup.add_argument("--preset", action="append", choices=PRESETS, help="default: both")
    setup.add_argument("--sdist", type=Path, help="llama-cpp-python's source archive; default: fetch it")
    run = commands.add_parser("run", help="measure them in turn")
    run.add_argument("--preset", choices=PRESETS, required=True)
    run.add_argument("--depths", default="512,4k,128k")
    run.add_argument("--grow-to", type=parse_count, default=4096, help="read up to this depth, jump to deeper ones")
    run.add_argument("--peers", default=",".join(PEERS))
    run.add_argument("--rounds", type=int, default=3)
    run.add_argument("--decode", type=int, default=32, help="tokens to decode in a round")
    run.add_argument("--patience", type=float, default=0.0, help="seconds to repeat a timing that others disturbed")
    run.add_argument("--threads", type=int, default=cores())
    run.add_argument("--json", action="store_true")
    for command in (setup, run):
        command.add_argument("--dir", type=Path, default=Path("build/peers"))
    parsed = parser.parse_args(arguments)
    if parsed.command == "run":
        unknown = set(parsed.peers.split(",")) - set(PEERS)
        if unknown:
            parser.error(f"no program {', '.join(sorted(unknown))}; there are {', '.join(PEERS)}")
        if min(parse_count(depth) for depth in parsed.depths.split(",")) < CHUNK:
            parser.error(f"depths begin at {CHUNK} tokens")
    return parsed


def main() -> None:
    """Set up, or measure and print."""
    arguments = parse()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # ends the programs as Ctrl-C does
    if arguments.command == "setup":
        set_up(arguments.dir, arguments.preset or list(PRESETS), arguments.sdist)
        return
    document = compare(arguments)
    if arguments.json:
        print(json.dumps(document, indent=2))
    else:
        show(document)


if __name__ == "__main__":
    main()
