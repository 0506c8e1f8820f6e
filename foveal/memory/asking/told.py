"""An answer as JSON, and back: what the command line, HTTP and MCP tell of it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from foveal.batch import FinishReason
from foveal.memory.asking.answering import Answer, Step
from foveal.memory.asking.places import Found
from foveal.memory.asking.support import AnswerCitation


def told(answer: Answer) -> dict[str, Any]:
    """All that is known of an answer (docs/cli.md)."""
    return {
        "question": answer.question,
        "text": answer.text,
        "found": answer.found,
        "citations": [asdict(citation) for citation in answer.citations],
        "places": [
            {
                "number": number,
                "path": place.path,
                "first_line": place.first_line,
                "last_line": place.last_line,
                "text": place.text,
                "numbers": list(place.numbers),
                "title": place.title,
                "tokens": place.tokens,
                "score": round(place.score, 5),
                "ranks": place.ranks,
            }
            for number, place in enumerate(answer.places, start=1)
        ],
        "steps": [asdict(step) for step in answer.steps],
        "finish_reason": str(answer.finish_reason),
        "usage": {"prompt_tokens": answer.prompt_tokens, "completion_tokens": answer.completion_tokens},
    }


def untold(document: dict[str, Any]) -> Answer:
    """The answer that `told` made a document of. Raises `KeyError`, `TypeError`, `ValueError` for another one."""
    places = tuple(_place(each) for each in document["places"])
    citations = tuple(_citation(each, len(places)) for each in document["citations"])
    steps = tuple(_step(each) for each in document["steps"])
    usage = document["usage"]
    return Answer(
        _text(document["question"]),
        _text(document["text"]),
        citations,
        places,
        steps,
        FinishReason(document["finish_reason"]),
        _count(usage["prompt_tokens"]),
        _count(usage["completion_tokens"]),
    )


def _place(said: dict[str, Any]) -> Found:
    ranks = {_text(name): _count(rank) for name, rank in said["ranks"].items()}
    numbers = tuple(_count(number) for number in said.get("numbers", ()))
    text = _text(said["text"])
    if numbers and len(numbers) != text.count("\n") + 1:
        raise ValueError("a place has as many numbers as lines")
    return Found(
        _text(said["path"]),
        _count(said["first_line"]),
        _count(said["last_line"]),
        text,
        float(said["score"]),
        ranks,
        _text(said["title"]),
        _count(said["tokens"]),
        numbers,
    )


def _citation(said: dict[str, Any], places: int) -> AnswerCitation:
    number = _count(said["number"])
    if not 1 <= number <= places:
        raise ValueError("a citation is of a place that is not there")
    lines = _count(said["first_line"]), _count(said["last_line"])
    return AnswerCitation(number, _text(said["path"]), *lines, bool(said["marked"]))


def _step(said: dict[str, Any]) -> Step:
    return Step(_text(said["name"]), _text(said["detail"]), _count(said["tokens"]), float(said["seconds"]))


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _count(value: object) -> int:
    if not isinstance(value, int) or value < 0:
        raise TypeError(f"{value!r} is no count")
    return value
