"""torchvision is loaded without torch's compiler, and both work afterwards."""

from __future__ import annotations

from tests.test_architecture import seen_by

PROGRAM = """
import json, sys
import torch
{before}
from featmap.network.libraries import load_torchvision
vision = load_torchvision()
seen = {{"compiler": "torch._dynamo.convert_frame" in sys.modules, "left": "torch._dynamo" in sys.modules}}
image, box = torch.arange(64.0).view(1, 1, 8, 8), torch.tensor([[0.0, 0.0, 0.0, 4.0, 4.0]])
seen["pooled"] = vision.ops.roi_align(image, box, 2, sampling_ratio=1).flatten().tolist()
seen["tells"] = vision.ops.roi_align.__globals__["is_compile_supported"]("cuda") in (True, False)
import torch._dynamo.utils
seen["real"] = hasattr(torch._dynamo, "optimize") and torch._dynamo.utils.__file__ is not None
seen["compiled"] = torch.compile(lambda x: x + 1, backend="eager")(torch.zeros(2)).tolist()
print("\\n" + json.dumps(seen))
"""
WORKS = {"pooled": [9.0, 11.0, 25.0, 27.0], "tells": True, "real": True, "compiled": [1.0, 1.0]}


def test_torchvision_comes_without_the_compiler_and_both_work() -> None:
    _, seen = seen_by(PROGRAM.format(before=""))
    assert seen == {"compiler": False, "left": False, **WORKS}


def test_a_compiler_that_is_there_already_stays() -> None:
    _, seen = seen_by(PROGRAM.format(before="import torch._dynamo"))
    assert seen == {"compiler": True, "left": True, **WORKS}


def test_another_name_of_the_compiler_is_the_real_one() -> None:
    program = """
import importlib, json, sys, types
import featmap.network.libraries as vision
def fake(name):
    assert name == "torchvision"
    from torch._dynamo.utils import counters
    import torch._dynamo.utils as real
    return types.SimpleNamespace(same=counters is real.counters)
one, vision.importlib = importlib, types.SimpleNamespace(
    import_module=lambda n: fake(n) if n == "torchvision" else importlib.import_module(n))
print("\\n" + json.dumps([vision.load_torchvision().same, "torch._dynamo.convert_frame" in sys.modules]))
"""
    assert seen_by(program)[1] == [True, True]


def test_a_torchvision_that_asks_for_more_is_loaded_the_plain_way() -> None:
    program = """
import importlib, importlib.util, json, sys, types
import featmap.network.libraries as vision
asked = []
def fake(name):
    asked.append(importlib.util.find_spec("torch._dynamo") is not None)
    import torch._dynamo.config
    return types.SimpleNamespace(there=torch._dynamo.config.__file__ is not None)
vision.importlib = types.SimpleNamespace(
    import_module=lambda n: fake(n) if n == "torchvision" else importlib.import_module(n))
print("\\n" + json.dumps([vision.load_torchvision().there, asked, "torch._dynamo.convert_frame" in sys.modules]))
"""
    assert seen_by(program)[1] == [True, [True, True], True]
