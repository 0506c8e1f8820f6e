"""A model ready to run: opened, with its pages, its prompts, and the thread that runs them.

engine = Engine.open("nano")
engine.generate("def parse_config(").text
"""

from typing import TYPE_CHECKING

from foveal import lazily

if TYPE_CHECKING:
    from foveal.engine.again import RunningAgain as RunningAgain
    from foveal.engine.engine import Engine as Engine
    from foveal.engine.models import SHIPPED as SHIPPED
    from foveal.engine.models import ModelNotFound as ModelNotFound
    from foveal.engine.models import model_folder as model_folder
    from foveal.engine.models import own_model as own_model
    from foveal.engine.models import user_models as user_models
    from foveal.engine.opening import Backend as Backend
    from foveal.engine.opening import default_format as default_format
    from foveal.engine.prompts import Prefixes as Prefixes
    from foveal.engine.prompts import Prepared as Prepared
    from foveal.engine.prompts import Start as Start
    from foveal.engine.prompts import with_settings as with_settings

_HOMES = {
    "RunningAgain": "foveal.engine.again",
    "Engine": "foveal.engine.engine",
    "SHIPPED": "foveal.engine.models",
    "ModelNotFound": "foveal.engine.models",
    "model_folder": "foveal.engine.models",
    "own_model": "foveal.engine.models",
    "user_models": "foveal.engine.models",
    "Backend": "foveal.engine.opening",
    "default_format": "foveal.engine.opening",
    "Prefixes": "foveal.engine.prompts",
    "Prepared": "foveal.engine.prompts",
    "Start": "foveal.engine.prompts",
    "with_settings": "foveal.engine.prompts",
}

__all__ = [*_HOMES]
__getattr__ = lazily(__name__, _HOMES)
