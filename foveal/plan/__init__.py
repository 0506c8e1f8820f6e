"""What a model and a context cost: bytes of the cache by kind, and what a machine can hold and how fast."""

from typing import TYPE_CHECKING

from foveal import lazily

if TYPE_CHECKING:
    from foveal.plan.machines import MACHINE_NAMES as MACHINE_NAMES
    from foveal.plan.machines import Machine as Machine
    from foveal.plan.plan import PLAN_FORMATS as PLAN_FORMATS
    from foveal.plan.plan import Plan as Plan
    from foveal.plan.plan import PlanError as PlanError
    from foveal.plan.plan import make_plan as make_plan
    from foveal.plan.plan import parse_tokens as parse_tokens

_HOMES = {
    "MACHINE_NAMES": "foveal.plan.machines",
    "Machine": "foveal.plan.machines",
    "PLAN_FORMATS": "foveal.plan.plan",
    "Plan": "foveal.plan.plan",
    "PlanError": "foveal.plan.plan",
    "make_plan": "foveal.plan.plan",
    "parse_tokens": "foveal.plan.plan",
}

__all__ = [*_HOMES]
__getattr__ = lazily(__name__, _HOMES)
