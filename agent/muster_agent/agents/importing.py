"""Finding what an import path names."""

import importlib
import sys
from pathlib import Path

from muster_agent.tools.complaints import ToolkitError


def imported(path: str) -> object:
    """What `module:name` names; modules are also looked for in the folder that the service was started in.

    Raises:
        ToolkitError: There is no such thing, or importing it failed.
    """
    module_name, _, name = path.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise ToolkitError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error
    if not hasattr(module, name):
        raise ToolkitError(f"{path} cannot be imported: the module has no {name}")
    return getattr(module, name)
