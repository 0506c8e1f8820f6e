"""Is everything as it was written? Every byte of a store is read and compared, and every reference counted anew.

Nothing is changed unless that is asked for. A problem says which contexts it concerns and what will happen: a damaged
copy is replaced by the other one, a damaged page or tail is computed again from its tokens. What was mended since the
last time is told as well. What cannot be read just now is no problem of the store's: then there is no report.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path

from foveal.store import copies
from foveal.store.errors import IndexDamaged, StoreError, StoreUnavailable
from foveal.store.gc import collect
from foveal.store.index import Index
from foveal.store.inspection import Checked, IndexView, Inspection
from foveal.store.records import Kind
from foveal.store.report import Problem, Report
from foveal.store.rows import ContextRow, Entry
from foveal.store.store import Store
from foveal.store.writer import Writer

_ATTEMPTS = 3
"""How often a store that others change is checked before they are kept out."""


def verify(store: Store, names: Iterable[str] | None = None, *, repair: bool = False) -> Report:
    """Check the whole store, or the contexts called `names`. With `repair`, mend what can be mended.

    Raises `MemoryNotFound` for a name that is not there, `StoreUnavailable` when something cannot be read just now.
    """
    wanted = None if names is None else set(names)
    for name in wanted or ():
        store.context(name)
    try:
        return _verify(store, wanted, repair)
    except OSError as error:
        raise StoreUnavailable(Path(error.filename or store.folder), error) from error


def _verify(store: Store, wanted: set[str] | None, repair: bool) -> Report:
    checked = _check(store, wanted)
    if wanted is None:
        told = [Problem(what, where, mended=True) for what, where in store.repairs.told()]
        checked.report.problems[:0] = told
        checked.report.lost = store.packs.lost.sizes()
    if repair and not checked.report.sound:
        _repair(store, checked)
    if wanted is None:
        store.repairs.forget()
    return checked.report


def _check(store: Store, wanted: set[str] | None) -> Checked:
    """A check against the index as it is. Others may change the store meanwhile, and what was moved is not damaged: so
    problems count only if nothing has changed; and if something always has, nobody is let in the last time."""
    checked = Checked(Report(), [])
    for _ in range(_ATTEMPTS):
        try:
            view = store.look(IndexView.of)
            checked = Inspection(store, view, wanted).run()
            if checked.report.sound or store.look(Index.stamp) == view.stamp:
                return checked
        except IndexDamaged as error:
            return Checked(Report([Problem("index", str(error))]), [])
    with contextlib.suppress(StoreError):  # where it cannot be written to, the last attempt has to do
        return store.transact(lambda tx: Inspection(store, IndexView.of(tx.index), wanted).run())
    return checked


def _repair(store: Store, checked: Checked) -> None:
    """Mend what was found; then, if that was not all, make the index again, which brings back what only it had lost."""
    try:
        store.own.mend_about()
        store.own.mend_reserve()
    except OSError as error:
        raise StoreError(f"cannot write to the store {store.folder}: {error}") from error
    for remake in (False, True):
        if remake:
            store.repair()
            checked = _check(store, None)
        bad = checked.bad
        store.transact(lambda tx, bad=bad: _mend(tx, bad))  # type: ignore[misc]
        if any(problem.what == "pack" for problem in checked.report.problems):
            collect(store, threshold=1.0)
        checked = _check(store, None)
        if checked.report.sound:
            return


def _mend(tx: Writer, bad: list[Entry]) -> None:
    """Write the whole copy of an object anew, or have it forgotten when there is none."""
    for entry in bad:
        current = tx.index.objects.find(Kind(entry.kind), entry.key)
        if current is None or current.extents != entry.extents:
            continue
        _mend_object(tx, current)
    for row in tx.index.contexts.all():
        _mend_context(tx, row)
    for gone in tx.index.contexts.gone():
        copies.make_gone_whole(tx, gone)


def _mend_object(tx: Writer, entry: Entry) -> None:
    kind = Kind(entry.kind)
    payload = tx.store.objects.read(entry)
    if payload is not None and kind is not Kind.PAGE:
        tx.rewrite(entry, bytes(payload), copies=entry.copies)
    elif kind is Kind.PAGE:
        tx.changed = True
        tx.index.objects.remove([entry.id])
    else:
        tx.changed = True
        tx.index.objects.forget(entry.id)


def _mend_context(tx: Writer, row: ContextRow) -> None:
    """Its record in all copies, and in the index what it is made of. A record that is damaged everywhere was told as
    lost; then the latest one before it that is whole takes its place, if the packs have one."""
    if tx.store.records.find(row) is None:
        older = copies.older_record(tx, row.label)
        if older is None:
            return
        tx.put_context(older, tx.uses(older))
        return
    copies.make_context_whole(tx, row)
    context = tx.store.records.read(row)
    kept = tuple((at, key) for at, key in context.tails if tx.index.objects.find(Kind.TAIL, key) is not None)
    if kept != context.tails or set(tx.index.references.used_by(row.id)) != set(tx.uses(context)):
        context = context.replace(tails=kept)
        tx.put_context(context, tx.uses(context))
