"""`foveal eval` on a tiny random model: the whole way, killed and gone on with, and its mistakes in one line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from cli_support import write_model
from click.testing import CliRunner, Result
from evals_support import material, write_source

from foveal.cli.main import app
from foveal.evals.bench import Bench
from foveal.evals.errors import EvalError
from foveal.evals.results import FILE, Key, Results, Sample
from foveal.evals.runner import Experiment, Runner
from foveal.evals.scoring import holds_all, interval, likeness, tokens_right
from foveal.evals.tasks import TASKS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("evals") / "model", seed=1)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source(tmp_path_factory.mktemp("source"))


def arguments(model: Path, source: Path, tasks: str, *more: str) -> list[str]:
    common = ["--length", "2k", "--samples", "2", "--contexts", "1", "--threads", "1"]
    return ["eval", tasks, "--model", str(model), "--source", str(source), *common, *more]


def run(model: Path, source: Path, tasks: str, *more: str) -> Result:
    return CliRunner().invoke(app, arguments(model, source, tasks, *more))


def test_json_of_one_task(model: Path, source: Path) -> None:
    result = run(model, source, "recall", "--json")
    assert result.exit_code == 0, result.output
    document: dict[str, Any] = json.loads(result.stdout)
    assert document["complete"] and document["task"] == "recall" and document["n"] == 2
    for name in ("token_accuracy", "sequence_accuracy", "citation_accuracy"):
        low, high = document["intervals"][name]
        assert 0 <= low <= document[name] <= high <= 1
    by = {row["system"]: row for row in document["results"]}
    assert by["search"]["token_accuracy"] == by["search"]["citation_accuracy"] == 1
    assert document["form"] == "completion" and document["read"]["tokens"] > 1900


def test_a_table_of_several_tasks(model: Path, source: Path, tmp_path: Path) -> None:
    result = run(model, source, "single_1,multikey_2,indexer", "--out", str(tmp_path))
    assert result.exit_code == 0, result.output
    rows = {line.split()[1]: line for line in result.stdout.splitlines() if line.strip().startswith("2,048")}
    assert set(rows) == {"single_1", "multikey_2", "indexer"} and "mass_in_topk" in rows["indexer"]
    assert oct((tmp_path / FILE).stat().st_mode)[-3:] == "600"


def test_the_same_command_runs_nothing_again(model: Path, source: Path, tmp_path: Path) -> None:
    more = ("--out", str(tmp_path), "--json")
    first = json.loads(run(model, source, "recall,single_2", *more).stdout)
    written = (tmp_path / FILE).read_bytes()
    again = json.loads(run(model, source, "recall,single_2", *more).stdout)
    assert again["results"] == first["results"] and (tmp_path / FILE).read_bytes() == written
    assert again["read"]["tokens"] == 0
    other = json.loads(run(model, source, "recall,single_2", "--seed", "5", *more).stdout)
    assert other["results"] != first["results"]
    assert (tmp_path / FILE).read_bytes().startswith(written)


def test_killed_and_gone_on_with(model: Path, source: Path, tmp_path: Path) -> None:
    def command(out: Path) -> list[str]:
        every = arguments(model, source, "recall,single_1,single_2,multikey_1,multikey_2", "--json", "--out", str(out))
        return [sys.executable, "-m", "foveal.cli.main", *every]

    whole = subprocess.run(command(tmp_path / "whole"), capture_output=True, check=True, text=True)
    process = subprocess.Popen(command(tmp_path / "killed"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    file = tmp_path / "killed" / FILE
    patience = time.monotonic() + 300
    while (not file.exists() or file.read_bytes().count(b"\n") < 4) and time.monotonic() < patience:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = file.read_bytes()
    assert kept.count(b"\n") >= 4
    with open(file, "ab") as torn:
        torn.write(b'{"run": "half a li')
    resumed = subprocess.run(command(tmp_path / "killed"), capture_output=True, check=True, text=True)
    assert json.loads(resumed.stdout)["results"] == json.loads(whole.stdout)["results"]
    assert file.read_bytes().startswith(kept)
    lines = [json.loads(line) for line in file.read_bytes().splitlines() if not line.endswith(b"half a li")]
    samples = [
        json.dumps([line[n] for n in ("run", "task", "system", "context", "question")])
        for line in lines
        if "question" in line
    ]
    assert len(samples) == len(set(samples))


def test_interrupted_results_are_kept_and_shown(model: Path, source: Path, tmp_path: Path) -> None:
    every = arguments(model, source, "recall,single_1,single_2,multikey_1,multikey_2", "--out", str(tmp_path))
    process = subprocess.Popen(
        [sys.executable, "-m", "foveal.cli.main", *every], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    file = tmp_path / FILE
    patience = time.monotonic() + 300
    while (not file.exists() or not file.read_bytes()) and time.monotonic() < patience:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGINT)
    out, errors = process.communicate(timeout=300)
    if process.returncode == 0:
        pytest.skip("it was done before it could be interrupted")
    assert process.returncode == 130 and "run the same command again" in errors
    assert "recall" in out and "Traceback" not in errors


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["nonsense"], "no task 'nonsense'"),
        (["recall", "--model", "/nowhere"], "there is no model"),
        (["recall", "--source", "/nowhere"], "/nowhere"),
        (["recall", "--length", "1M"], "name a larger folder with --source"),
        (["recall", "--length", "64"], "64 tokens"),
        (["recall", "--length", "0"], "at least one token"),
        (["recall", "--form", "verse"], "no form 'verse'"),
    ],
)
def test_mistakes_are_one_line(model: Path, source: Path, more: list[str], said: str) -> None:
    given = ["eval", *more]
    if "--model" not in more:
        given += ["--model", str(model)]
    if "--source" not in more:
        given += ["--source", str(source)]
    result = CliRunner().invoke(app, given)
    assert result.exit_code == 1 and said in result.stderr and result.stdout == ""
    assert len(result.stderr.strip().splitlines()) == 1


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    with Results(tmp_path), pytest.raises(EvalError, match="another process"):
        Results(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / FILE).write_text('{"something": "else"}\n')
    with pytest.raises(EvalError, match="something else than results"):
        Results(tmp_path / "other")


def test_results_come_back(tmp_path: Path) -> None:
    key = Key("run", "recall", 4096, "memory", 0)
    with Results(tmp_path) as results:
        results.add(Sample(key, 1, {"token_accuracy": 0.5}, {"place": 0.1}))
        results.add(Sample(key, 0, {"token_accuracy": 1.0}))
        results.finish(key)
    with Results(tmp_path) as results:
        assert [row.question for row in results.of([key])] == [0, 1] and len(results) == 2
        assert results.has(key, 1) and not results.has(key, 2) and results.finished(key)
        assert not results.finished(Key("other", "recall", 4096, "memory", 0))


def test_samples_are_shared_out_evenly() -> None:
    def questions(length: int, samples: int, contexts: int | None = None) -> list[int]:
        return Experiment((), (length,), samples, 0, "completion", contexts).questions(length)

    assert questions(4096, 20) == [1] * 20
    assert questions(32768, 20) == [5, 5, 5, 5]
    assert questions(1 << 20, 20) == [20]
    assert questions(4096, 7, 3) == [3, 3, 1]
    with pytest.raises(EvalError):
        questions(4096, 0)


def test_the_same_weights_can_look_at_fewer_entries(model: Path, tmp_path: Path) -> None:
    with Bench(str(model), tmp_path / "store", threads=1) as bench:
        fewer = bench.looking_at(3)
        assert fewer.config.index_topk == 3 and bench.engine.config.index_topk != 3
        assert bench.looking_at(bench.engine.config.index_topk) is bench.engine
        assert fewer.fingerprint.weights != "" and fewer.fingerprint != bench.engine.fingerprint


def test_indexer_shares_are_shares_and_grow_with_k(model: Path, tmp_path: Path) -> None:
    task = TASKS["indexer"]
    texts = material()
    with Bench(str(model), tmp_path / "store", threads=1) as bench:
        context = task.build(texts, 2048, 2, task.dice(0, 2048, 0))
        measured = list(task.measure(bench, context, 2048, 0))  # type: ignore[attr-defined]
        everything = bench.engine.config.entries_after(2048, 1)
    assert len(measured) == 2 and bench.engine.config.index_topk == 16
    for sample in measured:
        shares = [sample.metrics[f"mass_in_top_{size}"] for size in (64, 128, 256)]
        assert 0 < sample.metrics["mass_in_topk"] < shares[0] < shares[1] < shares[2] <= 1
        assert 16 / everything / 4 < sample.metrics["mass_in_topk"]
        assert 0 < sample.metrics["entry_mass"] < 2


def test_everything_runs(model: Path, source: Path, tmp_path: Path) -> None:
    picture = tmp_path / "all.png"
    more = ("--json", "--full-context", "4k", "--plot", str(picture))
    result = run(model, source, "citations,lookup,repoqa,vt,cwe,fwe,mrcr_2,perplexity,topk", *more)
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    rows = {(row["task"], row["system"]): row for row in document["results"]}
    assert document["complete"] and picture.read_bytes().startswith(b"\x89PNG")
    assert 5 < rows["perplexity", "memory"]["nll"] < 20 and "nll_to_2048" in rows["perplexity", "memory"]
    assert {f"token_accuracy_top_{k}" for k in (1, 4, 16, 64)} < set(rows["topk", "memory"])
    assert rows["lookup", "search"]["accuracy"] == rows["lookup", "search"]["citation_accuracy"] == 1
    assert {system for task, system in rows if task == "mrcr_2"} == {"memory", "full_context", "search"}


def test_chat_form(model: Path, source: Path) -> None:
    result = run(model, source, "single_2", "--form", "chat", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["form"] == "chat"


def test_scores() -> None:
    assert holds_all("It is 1234567, or ABC", ("1234567", "abc", "9")) == pytest.approx(2 / 3)
    assert likeness("same", "same") == 1 and likeness("abcd", "wxyz") == 0
    assert tokens_right([1, 2, 3], [1, 2, 4, 5]) == (0.5, 2)
    assert tokens_right([], [1]) == (0.0, 0) and tokens_right([7, 8], [7, 8]) == (1.0, 2)


def test_intervals() -> None:
    assert interval([1.0] * 20) == pytest.approx((0.8389, 1.0), abs=1e-4)
    assert interval([0.0] * 20)[0] == 0
    low, high = interval([1.0, 0.0] * 50)
    assert (low, high) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    assert interval([5.0, 7.0])[0] < 6 < interval([5.0, 7.0])[1]


def test_measurements_say_that_they_ask_in_the_completion_form(model: Path, source: Path) -> None:
    result = run(model, source, "perplexity,single_2", "--form", "chat", "--json")
    rows = {row["task"]: row["form"] for row in json.loads(result.stdout)["results"]}
    assert rows == {"perplexity": "completion", "single_2": "chat"}


def test_one_sample_has_no_interval(model: Path, source: Path) -> None:
    result = run(model, source, "perplexity", "--samples", "1")
    assert result.exit_code == 0 and "inf" not in result.stdout and "perplexity" in result.stdout


def test_a_plot_names_the_extra_that_brings_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    result = CliRunner().invoke(app, ["eval", "recall", "--plot", "a.png"])
    assert result.exit_code == 1 and "foveal[evals]" in result.stderr


def test_texts_longer_than_the_context_are_refused_at_once(model: Path, source: Path, tmp_path: Path) -> None:
    result = run(model, source, "recall", "--length", "2k,999999999M", "--out", str(tmp_path / "out"))
    assert result.exit_code == 1 and "the context of" in result.stderr and not (tmp_path / "out").exists()


def test_a_text_that_cannot_be_made_does_not_stop_the_others(model: Path, source: Path, tmp_path: Path) -> None:
    more = ("--length", "2k,256k", "--out", str(tmp_path))
    result = run(model, source, "recall,single_2", *more)
    assert result.exit_code == 1 and result.stdout.count("2,048") == 2 and "262,144" not in result.stdout
    assert "recall at 262,144: 1 text could not be made" in result.stderr and "--source" in result.stderr


def test_json_names_what_could_not_be_made(model: Path, source: Path) -> None:
    result = run(model, source, "recall,single_2", "--length", "2k,256k", "--json")
    document = json.loads(result.stdout)
    assert result.exit_code == 1 and not document["complete"]
    assert {(row["task"], row["length"]) for row in document["results"]} == {("recall", 2048), ("single_2", 2048)}
    assert [(one["task"], one["length"], one["context"]) for one in document["problems"]] == [
        ("recall", 1 << 18, 0),
        ("single_2", 1 << 18, 0),
    ]
    assert "--source" in document["problems"][0]["message"]


def test_fewer_questions_of_a_text_are_another_text(model: Path, source: Path, tmp_path: Path) -> None:
    for samples in ("3", "4"):
        more = ("--samples", samples, "--contexts", "2", "--out", str(tmp_path), "--json")
        document = json.loads(run(model, source, "multikey_2", *more).stdout)
        assert document["complete"] and document["n"] == document["planned"] == int(samples)


@pytest.mark.parametrize("before", [False, True])
def test_a_damaged_sample_is_measured_again(model: Path, source: Path, tmp_path: Path, before: bool) -> None:
    more = ("--samples", "5", "--out", str(tmp_path), "--json")
    whole = json.loads(run(model, source, "multikey_2", *more).stdout)
    file = tmp_path / FILE
    lines = file.read_bytes().splitlines(keepends=True)
    if before:  # as it was written before the number of samples was
        lines = [line.replace(b',"samples":5', b"") for line in lines]
    lines[2] = lines[2][:40] + b"\xff" + lines[2][41:]
    file.write_bytes(b"".join(lines))
    result = run(model, source, "multikey_2", *more)
    again = json.loads(result.stdout)
    assert "1 damaged line of" in result.stderr and again["complete"] and again["n"] == 5
    assert again["results"] == whole["results"] and again["read"]["tokens"] == 0


def test_a_file_of_something_else_is_left_alone(tmp_path: Path) -> None:
    for text in ("dear diary\n", "dear diary", "1\n2\n", '{"run": 1}\n'):
        (tmp_path / FILE).write_text(text)
        for _ in range(2):  # and it is not locked either
            with pytest.raises(EvalError, match="something else than results"):
                Results(tmp_path)
        assert (tmp_path / FILE).read_text() == text
    (tmp_path / FILE).write_text('{"run":"half a li')
    with Results(tmp_path) as results:
        assert len(results) == results.damaged == 0


def test_interrupted_before_the_first_sample(
    model: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: Runner) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Runner, "run", interrupt)
    result = run(model, source, "recall", "--out", str(tmp_path))
    assert result.exit_code == 130 and "run the same command again" in result.stderr
    assert "nothing was measured" not in result.stderr


@pytest.mark.parametrize("option", ["--model", "--source"])
def test_a_mistake_leaves_no_folder(model: Path, source: Path, tmp_path: Path, option: str) -> None:
    result = run(model, source, "recall", option, "/nowhere", "--out", str(tmp_path / "new"))
    assert result.exit_code == 1 and not (tmp_path / "new").exists()
