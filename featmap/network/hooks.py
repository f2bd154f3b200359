"""Run a network as far as the layers asked for. The only place that hooks a forward pass for its values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from featmap.errors import UnitError


class _Stop(BaseException):
    """Raised inside the forward pass once every tapped layer has its output; no forward's own `except` catches it."""


@contextmanager
def freeze(module: nn.Module) -> Iterator[nn.Module]:
    """Lend `module` in evaluation mode with frozen parameters; give it back exactly as it was."""
    training = [(m, m.training) for m in module.modules()]
    learning = [(p, p.requires_grad) for p in module.parameters()]
    try:
        module.eval()
        for p, _ in learning:
            p.requires_grad_(False)
        yield module
    finally:
        for m, was in training:
            m.training = was
        for p, wanted in learning:
            p.requires_grad_(wanted)


class ActivationHooks:
    """A module that is stopped at the deepest of some layers and yields their outputs.

    Parameters
    ----------
    module : the network; inside the context it is in evaluation mode and frozen, afterwards as before
    layers : names as `featmap layers` prints them; ``name@k`` is the k-th call of a module that one
        forward pass calls several times
    leaves : those of them that are cut out of the graph: what lies behind them has its gradient by their outputs

    Examples
    --------
    >>> from torch import nn, zeros
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3))
    >>> with Taps(net, ["1"]) as taps:
    ...     tuple(taps.run(zeros(2, 3, 8, 8))["1"].shape)
    (2, 4, 6, 6)
    """

    def __init__(self, module: nn.Module, layers: Sequence[str], leaves: Sequence[str] = ()) -> None:
        self.module, self.leaves = module, frozenset(leaves)
        self.layers = list(dict.fromkeys(layers))
        self._places = {name: _place(name) for name in self.layers}
        self._values: dict[str, Tensor] = {}
        self._calls: dict[str, int] = {}
        self._running = False
        self._handles: list[RemovableHandle] = []
        self._lent: Any = None

    def __enter__(self) -> ActivationHooks:
        modules = dict(self.module.named_modules())
        for name, (path, _) in self._places.items():
            if path not in modules:
                raise UnitError(f"no layer {name!r} in this network; `featmap layers` lists them")
        self._lent = freeze(self.module)
        self._lent.__enter__()
        for path in {path for path, _ in self._places.values()}:
            self._handles.append(modules[path].register_forward_hook(self._hook(path)))
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        while self._handles:
            self._handles.pop().remove()
        self._values.clear()
        self._lent.__exit__(kind, value, tb)

    def _hook(self, path: str) -> Any:
        wanted = {k: name for name, (p, k) in self._places.items() if p == path}

        def note(_: nn.Module, __: Any, out: Any) -> Tensor | None:
            if not self._running:  # a pass that somebody else makes inside this context
                return None
            self._calls[path] = k = self._calls.get(path, 0) + 1
            name = wanted.get(k)
            if name is None:
                return None
            if not isinstance(out, Tensor) or out.dim() not in (2, 4):
                raise UnitError(f"layer {name!r} gives no N x C x H x W grid; `featmap layers` lists those that do")
            # cloned, because an in-place ReLU behind the layer would overwrite what was tapped
            leaf = name in self.leaves
            kept = out.detach().clone().requires_grad_(True) if leaf else out.clone()
            self._values[name] = kept if kept.dim() == 4 else kept[:, :, None, None]
            if len(self._values) == len(self.layers):
                raise _Stop
            return kept.clone() if leaf else None

        return note

    def run(self, images: Tensor) -> dict[str, Tensor]:
        """Return each tapped layer's output, N x C x H x W, for `images` as the module takes them."""
        self._values, self._calls, self._running = {}, {}, True
        try:
            with suppress(_Stop):
                self.module(images)
        finally:
            self._running = False
        missing = [name for name in self.layers if name not in self._values]
        if missing:
            raise UnitError(
                f"layer {missing[0]!r} was not reached by the forward pass; `featmap layers` lists those that are"
            )
        values, self._values = self._values, {}
        return {name: values[name] for name in self.layers}


def _place(name: str) -> tuple[str, int]:
    """Split ``path@k`` into the module's path and the number of its call."""
    path, at, call = name.rpartition("@")
    return (path, int(call)) if at and call.isdigit() else (name, 1)
