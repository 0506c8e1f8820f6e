"""Search over code: which function is described (after RepoQA), and where and how a name is defined.

Descriptions are the functions' own docstrings, taken out of the text that is read, so nothing but the code says which
function is meant. A model that only continues text cannot follow a description: for it there is ``lookup``, whose cue
is the beginning of a definition (``def name(``, ``class Name``, ``NAME =``); the rest of the line must come back, and
the first citation must name the file and the line. Only definitions whose rest is no other's, nor part of it, are asked
for: else ``self):`` would be right time and again without a look at the text.
"""

from __future__ import annotations

import ast
import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from foveal.evals.errors import EvalError
from foveal.evals.material import Documents, Material, lines_of
from foveal.evals.scoring import likeness
from foveal.evals.task import Answer, Asking, Context, Form, Metrics, Question, Where, cited
from foveal.evals.tasks.recall import CODE, MIN_DISTANCE
from foveal.sources import Document

RIGHT = 0.8
"""RepoQA counts a function as found when it is at least so like the right one."""
FUNCTION_TOKENS = 256
_TRIES = 50
"""Stretches of the source that are looked at for something to ask: a short one may have nothing."""
_DEFINITION = re.compile(r"^( *(?:def|class|async def) +(\w+)\(?|([A-Z][A-Z0-9_]+) *=)(.+)$", re.MULTILINE)


class Lookup(Asking):
    """The rest of a definition's line, and where it stands."""

    name = "lookup"
    about = "definition lookup: signature of a function or class, value of a constant, and its file and line"
    metric = "accuracy"
    family = CODE

    def version(self, form: Form, length: int) -> int:
        return 2

    def build(self, material: Material, length: int, count: int, rng: random.Random) -> Context:
        for _ in range(_TRIES):
            documents = material.stretch(length, rng)
            every = list(_definitions(documents))
            if every:
                break
        else:
            raise EvalError("the source defines nothing that a cue could begin; give Python code with --source")
        rng.shuffle(every)
        return Context(documents, tuple(every[:count]))

    def score(self, material: Material, question: Question, answers: Sequence[Answer]) -> Metrics:
        """``accuracy``: the rest of the line is right; ``file_accuracy``, ``citation_accuracy``: of the first citation.
        In the chat form the name must be there too, and ``file_accuracy`` is whether the file is named."""
        answer = answers[0]
        said = " ".join(answer.text.splitlines())
        metrics = {"accuracy": float(question.answers[0].strip() in said)}
        if answer.chat:
            metrics["accuracy"] *= str(question.facts["name"]) in said
            return metrics | {"file_accuracy": float(question.places[0].path in answer.text)}
        if answer.citations is None:
            return metrics
        named = bool(answer.citations) and answer.citations[0].path == question.places[0].path
        return metrics | {"file_accuracy": float(named), **cited(question, answers)}


def _definitions(documents: Documents) -> Iterator[Question]:
    """Definitions whose beginning stands once and whose rest is part of no other's, far enough from the end."""
    found = [(d, m) for d in documents if d.path.endswith(".py") for m in _DEFINITION.finditer(d.text)]
    begun = Counter(match[1].strip() for _, match in found)
    rests = "\n".join(match[4].rstrip() for _, match in found)
    total, before = sum(len(d.text) for d in documents), {}
    passed = 0
    for document in documents:
        before[document.path] = passed
        passed += len(document.text)
    for document, match in found:
        name, rest, at = match[2] or match[3], match[4].rstrip(), before[document.path] + match.start()
        far = total - at > 4 * MIN_DISTANCE
        alone = begun[match[1].strip()] == 1 and far and len(rest.strip()) >= 4 and len(name) >= 4
        if alone and rests.count(rest.strip()) == 1:
            line = document.text.count("\n", 0, match.start()) + 1
            yield Question(
                ask=f"Where does the code above define {name}? Answer with the file and the whole line.",
                cues=(match[1],),
                answers=(rest,),
                max_tokens=48,
                places=(Where(document.path, line, line),),
                stop=("\n",),
                search=f"{name} {match[1].split()[0]}",
                place=at / total,
                facts={"name": name},
            )


@dataclass(frozen=True)
class _Function:
    path: str
    name: str
    description: str
    code: str


class DescribedFunction(Asking):
    """RepoQA-like: a description goes in, the function must come out."""

    name = "repoqa"
    about = "RepoQA-like: the function that a description (its docstring, taken out of the text) means"
    metric = "accuracy"

    def build(self, material: Material, length: int, count: int, rng: random.Random) -> Context:
        bare: dict[str, Document] = {}
        functions: list[_Function] = []
        for document in material.documents:
            text, found = without_docstrings(document)
            bare[document.path] = Document(document.path, text)
            functions += found
        without = Material(list(bare.values()), material.tokenizer)
        named = Counter(function.name for function in functions)
        for _ in range(_TRIES):
            documents = without.stretch(length, rng)
            texts = {document.path: document.text for document in documents}
            there = [f for f in functions if named[f.name] == 1 and f.code in texts.get(f.path, "")]
            if there:
                break
        else:
            raise EvalError("the text has no function with a description; give Python code with docstrings")
        chosen = rng.sample(there, min(count, len(there)))
        return Context(documents, tuple(_described(function, texts[function.path], documents) for function in chosen))

    def score(self, material: Material, question: Question, answers: Sequence[Answer]) -> Metrics:
        """``accuracy``: at least 0.8 like the function, its first tokens as far as the answer goes; ``name_accuracy``:
        it begins the right definition."""
        name, code = str(question.facts["name"]), question.expected
        body = re.sub(r"^```\w*\n|```\s*$", "", answers[0].text.strip())
        start = body.find("def ")
        body = body[start:] if start >= 0 else f"def {body}"
        alike = likeness(body.strip()[: len(code)], code.strip())
        named = bool(re.match(rf"def +{re.escape(name)}\b", body))
        return {"accuracy": float(alike >= RIGHT), "name_accuracy": float(named), **cited(question, answers)}


def _described(function: _Function, text: str, documents: Documents) -> Question:
    at = text.index(function.code)
    line = text.count("\n", 0, at) + 1
    told = " ".join(function.description.split())
    return Question(
        ask=f"Which function of the code above does this describe? {told}\nAnswer with its code, word for word.",
        cues=(f"# {told}\ndef",),
        answers=(function.name,),
        max_tokens=FUNCTION_TOKENS,
        places=(Where(function.path, line, line + function.code.count("\n")),),
        expected=function.code,
        search=told,
        place=[d.path for d in documents].index(function.path) / len(documents),
        facts={"name": function.name},
    )


def without_docstrings(document: Document) -> tuple[str, list[_Function]]:
    """The text without its functions' docstrings, and the functions that had one worth asking for."""
    if not document.path.endswith(".py"):
        return document.text, []
    try:
        tree = ast.parse(document.text)
    except (SyntaxError, ValueError, RecursionError):
        return document.text, []
    lines = lines_of(document.text, ends=True)
    gone: set[int] = set()
    spans = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and len(node.body) > 1 and (told := ast.get_docstring(node)):
            doc = node.body[0]
            gone.update(range(doc.lineno - 1, doc.end_lineno or doc.lineno))
            spans.append((node.name, told.split("\n\n")[0], node.lineno - 1, node.end_lineno or node.lineno))
    functions = []
    for name, told, first, end in spans:
        code = "".join(line for number, line in enumerate(lines[first:end], first) if number not in gone).strip()
        if 40 <= len(told) <= 400 and name not in told and 80 <= len(code) <= 600 and not name.startswith("__"):
            functions.append(_Function(document.path, name, told, code))
    return "".join(line for number, line in enumerate(lines) if number not in gone), functions
