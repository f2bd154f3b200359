"""Handle modules of any kind: plain layers, aliases, copies, checkpointed and compiled parts, and their state.

A user's module runs inside `freeze`, which gives it back as it was; whatever changes a module does so to a copy, see
`copy_module`.
"""

from __future__ import annotations

import contextlib
import copy
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, is_lazy
from torch.nn.utils import parametrize
from torch.utils import checkpoint

from featmap.errors import ModelError

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
"""Attributes in which torch keeps the hooks of a module."""
REGISTRIES = ("_parameters", "_buffers", "_modules")
"""Attributes in which torch keeps the tensors and children of a module."""
REDUCED = (torch.float16, torch.bfloat16)
"""Floating-point types of less than float32."""


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Check whether a module computes what its class says and nothing else.

    A subclass may do more (timm's `BatchNormAct2d` holds an activation), and so may a `forward` of the instance's own,
    a hook (pruning, the older weight norm) or a parametrization, which changes the class.

    Parameters
    ----------
    module : nn.Module
        Any module.
    kind : type
        The exact class.

    Returns
    -------
    bool
        True if the module may be replaced by another way of computing its class.
    """
    return (
        type(module) is kind
        and "forward" not in vars(module)
        and ("weight" in module._parameters or not hasattr(module, "weight"))
        and not any(getattr(module, name, None) for name in HOOKS)
    )


def is_reparametrised(module: nn.Module) -> bool:
    """Check whether a weight of a module is computed from other parameters.

    Weight norm and spectral norm do so.

    Parameters
    ----------
    module : nn.Module
        Any module.

    Returns
    -------
    bool
        True for parametrizations, and for the older hooks.
    """
    names = vars(module).keys() | module._buffers.keys()
    # the older hooks keep `weight_g` and `weight_v`, or `weight_orig`, and the weight itself as a plain attribute
    older = any(n.endswith(("_g", "_orig")) and n.rpartition("_")[0] in names for n in module._parameters)
    return older or parametrize.is_parametrized(module)


def modules_by_name(module: nn.Module) -> dict[str, nn.Module]:
    """Map every name of every module, also the second names of shared modules.

    Parameters
    ----------
    module : nn.Module
        The network.

    Returns
    -------
    dict of str to nn.Module
        The modules by name; a shared module appears once for each of its names.
    """
    return dict(module.named_modules(remove_duplicate=False))


def is_compiled(module: nn.Module) -> bool:
    """Check whether a module is the wrapper that `torch.compile` returns.

    Parameters
    ----------
    module : nn.Module
        Any module.

    Returns
    -------
    bool
        True for the wrapper. Its name decides: importing its class would load the compiler, which takes seconds.
    """
    return type(module).__name__ == "OptimizedModule" and isinstance(getattr(module, "_orig_mod", None), nn.Module)


def copy_module(module: nn.Module) -> nn.Module:
    """Copy a module, with the originals in place of compiled parts.

    Parameters
    ----------
    module : nn.Module
        The module; it is not changed.

    Returns
    -------
    nn.Module
        The copy; parts and tensors that were shared are shared in it too.
    """
    memo: dict[int, Any] = {}
    for part in reversed(list(module.modules())):  # compiled parts inside compiled parts first
        # weight norm of the older kind keeps a weight that was computed from parameters, which deepcopy refuses
        for value in (*vars(part).values(), *part._buffers.values()):
            if isinstance(value, UninitializedBuffer):  # without values there is nothing that deepcopy could copy
                kind: Any = type(value)
                memo[id(value)] = kind(False, value.device, value.dtype)
            elif isinstance(value, Tensor) and not is_lazy(value) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
        if is_compiled(part):
            memo[id(part)] = copy.deepcopy(part._orig_mod, memo)
    copied = copy.deepcopy(module, memo)
    for part in copied.modules():
        if getattr(part, "_compiled_call_impl", None) is not None:  # `module.compile()` compiles in place
            part._compiled_call_impl = None
    assert isinstance(copied, nn.Module)
    return copied


@contextlib.contextmanager
def preserve_state(module: nn.Module) -> Iterator[None]:
    """Give a module back as it was before its forward pass changed it.

    Attributes, children, buffers and tensors are restored: running counters, caches, and weights that hooks compute
    anew at each call, for example.

    Parameters
    ----------
    module : nn.Module
        The module; its parameters' values are not recorded.

    Yields
    ------
    None
        The state is restored at the end, also after an exception.
    """
    parts = [
        (part, dict(vars(part)), {name: dict(vars(part)[name]) for name in REGISTRIES if name in vars(part)})
        for part in module.modules()
    ]
    held = {id(t): t for part, attributes, _ in parts for t in (*part._buffers.values(), *attributes.values())}
    # what changes a tensor in place raises its version, so that unchanged ones need no comparison
    tensors = [
        (t, t._version, t.detach().clone())
        for t in held.values()
        if isinstance(t, Tensor) and not isinstance(t, nn.Parameter) and not t.is_inference()
    ]
    try:
        yield
    finally:
        for part, attributes, registries in parts:
            _restore(vars(part), attributes)
            for name, entries in registries.items():
                _restore(vars(part)[name], entries)
        with torch.no_grad():
            for tensor, version, values in tensors:
                if tensor._version != version:
                    tensor.copy_(values)


def _restore(entries: dict[str, Any], before: dict[str, Any]) -> None:
    """Make a dictionary what it was, in place."""
    for name in entries.keys() - before.keys():
        del entries[name]
    for name, value in before.items():
        if name not in entries or entries[name] is not value:
            entries[name] = value


class _NoCheckpoint:
    """Stands for torch's reentrant checkpointing and calls the function at once."""

    @staticmethod
    def apply(function: Callable[..., Any], _: bool, *args: Any) -> Any:
        return function(*args)


def _no_checkpoint(*_: Any, **__: Any) -> Iterator[None]:
    """Stand for torch's context around a checkpointed function and do nothing."""
    yield


@contextlib.contextmanager
def plain_execution() -> Iterator[None]:
    """Compute forward passes as written: not checkpointed, compiled or autocast.

    Checkpointing discards outputs and computes them again in the backward pass: hooks would fire twice, and a pass that
    stops at a layer looks broken to it. A network that enters autocast in its own forward pass is left as it is.

    Yields
    ------
    None
        Everything is as before at the end, also after an exception.
    """
    replacements = {
        "CheckpointFunction": _NoCheckpoint,
        "_checkpoint_without_reentrant_generator": _no_checkpoint,
        "_checkpoint_without_reentrant_generator_impl": _no_checkpoint,
    }
    # these names are private, and differ between versions of torch
    before = {name: vars(checkpoint)[name] for name in replacements if name in vars(checkpoint)}
    with contextlib.ExitStack() as stack:
        stack.callback(vars(checkpoint).update, before)
        vars(checkpoint).update({name: replacements[name] for name in before})
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        # the compiler is switched off only if it is loaded already: loading it takes seconds
        if "torch._dynamo" in sys.modules:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        with warnings.catch_warnings():
            # a warning for the network's author, who sees it in training
            warnings.filterwarnings("ignore", message=".*use_reentrant parameter should be passed.*")
            yield


@contextlib.contextmanager
def freeze(module: nn.Module) -> Iterator[nn.Module]:
    """Freeze a module in evaluation mode for a context, and compute it as written.

    See `plain_execution`.

    Parameters
    ----------
    module : nn.Module
        The module; afterwards, also after an exception, its modes, parameters and state are as they were.

    Yields
    ------
    nn.Module
        The same module.
    """
    modes = [(m, m.training) for m in module.modules()]
    gradients = [(p, p.requires_grad) for p in module.parameters()]
    try:
        with preserve_state(module), plain_execution():
            module.eval()
            for p, _ in gradients:
                p.requires_grad_(False)
            yield module
    finally:
        for m, training in modes:
            m.training = training
        for p, requires_grad in gradients:
            p.requires_grad_(requires_grad)


def check_supported(module: nn.Module, name: str) -> None:
    """Check that a module can be hooked and has gradients.

    Parameters
    ----------
    module : nn.Module
        The module.
    name : str
        Name of the network, for the message.

    Raises
    ------
    ModelError
        If a part of it is TorchScript or quantised, or has no values.
    """
    for path, part in module.named_modules():
        where = f"network {name}" + (f", part {path!r}," if path else "")
        tensors = [*part._parameters.values(), *part._buffers.values()] if "_parameters" in vars(part) else []
        if isinstance(part, torch.jit.ScriptModule):
            raise ModelError(
                f"{where} is TorchScript, whose parts cannot be read; give the torch.nn.Module that it was made from"
            )
        if (type(part).__module__.startswith("torch.") and ".quantized" in type(part).__module__) or any(
            _is_integer(t) for t in part._parameters.values()
        ):
            raise ModelError(
                f"{where} is quantised to integers, which have no gradient; give the network in float32, float16 or "
                "bfloat16 that it was made from"
            )
        if any(t is not None and t.is_meta for t in tensors):
            raise ModelError(f"{where} has no values (device meta); load its weights first")


def _is_integer(tensor: Tensor | None) -> bool:
    """Check whether a parameter holds integers or a quantised tensor."""
    if tensor is None or is_lazy(tensor):
        return False
    return tensor.is_quantized or not (tensor.is_floating_point() or tensor.is_complex())


def without_compiler(module: nn.Module) -> nn.Module:
    """Replace what `torch.compile` returned by the original modules.

    Parameters
    ----------
    module : nn.Module
        The module; it is not changed.

    Returns
    -------
    nn.Module
        The original of a compiled module; a copy where a part of it is compiled; else the same module.
    """
    while is_compiled(module):
        original = module._orig_mod
        assert isinstance(original, nn.Module)
        module = original
    return copy_module(module) if any(is_compiled(part) for part in module.modules()) else module


def is_uninitialised(module: nn.Module) -> bool:
    """Check whether a module has lazy parts that wait for a first input.

    Parameters
    ----------
    module : nn.Module
        The module.

    Returns
    -------
    bool
        True if any parameter or buffer has no shape yet.
    """
    return any(is_lazy(t) for t in (*module.parameters(), *module.buffers()))


def initialise_lazy(module: nn.Module, images: Tensor) -> nn.Module:
    """Copy a module and initialise its lazy parts by a first pass.

    Parameters
    ----------
    module : nn.Module
        The module; it is not changed.
    images : Tensor
        Images as the module takes them.

    Returns
    -------
    nn.Module
        The copy; its initial weights are drawn with seed 0.
    """
    copied = copy_module(module)
    modes = [(part, part.training) for part in copied.modules()]
    # initialisers take no generator; the fork restores the global one
    with torch.random.fork_rng(devices=[]), torch.no_grad(), plain_execution():
        torch.manual_seed(0)
        copied.eval()(images)
    for part, training in modes:
        part.training = training
    return copied


def not_finite(module: nn.Module) -> tuple[str, ...]:
    """Describe the tensors of a module that hold NaN or infinity.

    Infinity in a buffer other than batch statistics is no fault: masks of attention hold it.

    Parameters
    ----------
    module : nn.Module
        The module.

    Returns
    -------
    tuple of str
        One note that names the first; empty where all numbers are finite.
    """
    parameters = {name for name, _ in module.named_parameters()}
    names = []
    for name, tensor in module.state_dict().items():
        if not isinstance(tensor, Tensor) or is_lazy(tensor) or not tensor.is_floating_point():
            continue
        is_weight = name in parameters or name.rpartition(".")[2].startswith("running_")
        if not bool(tensor.isfinite().all() if is_weight else not tensor.isnan().any()):
            names.append(name)
    more = f" and {len(names) - 2:,} more" if len(names) > 2 else ""
    return (f"weights that are not finite (NaN or infinity): {', '.join(names[:2])}{more}",) if names else ()


def other_types(module: nn.Module) -> list[str]:
    """List the floating-point types other than float32 that a module keeps.

    Parameters
    ----------
    module : nn.Module
        The module.

    Returns
    -------
    list of str
        Such as ``["float16"]``, sorted.
    """
    tensors = (*module.parameters(), *module.buffers())
    types = {t.dtype for t in tensors if t.is_floating_point() and t.dtype is not torch.float32}
    return sorted(str(t).removeprefix("torch.") for t in types)


def place_module(module: nn.Module, device: torch.device) -> nn.Module:
    """Return a module on a device.

    Parameters
    ----------
    module : nn.Module
        The module; it is not moved.
    device : torch.device
        Where it is needed.

    Returns
    -------
    nn.Module
        The module itself if it is there, else a copy.
    """
    own = next((p.device for p in module.parameters()), device)
    in_place = own.type == device.type and device.index in (None, own.index)
    return module if in_place else copy_module(module).to(device)
