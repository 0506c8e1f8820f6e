"""How fast it is, and what it takes: measurement as a feature.

`Settings` say what to measure, `measure` runs it in processes of their own and returns the document that `foveal bench
--json` prints. `step_work` says what a step must do at the least, `fractions` holds times against a machine's ceilings.
docs/benchmarks.md says how to read the numbers.
"""

from foveal.measure.machine import OtherWork, cores, machine_facts, peak_bytes
from foveal.measure.run import measure
from foveal.measure.settings import DEPTHS, MeasureError, Settings
from foveal.measure.source import openable, preset_model, stored_as_published
from foveal.measure.synthetic import make_image
from foveal.measure.work import OPS, Fraction, Work, fractions, step_work, total

__all__ = [
    "DEPTHS",
    "Fraction",
    "MeasureError",
    "OPS",
    "OtherWork",
    "Settings",
    "Work",
    "cores",
    "fractions",
    "machine_facts",
    "make_image",
    "measure",
    "openable",
    "peak_bytes",
    "preset_model",
    "step_work",
    "stored_as_published",
    "total",
]
