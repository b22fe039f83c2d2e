"""What the build asks of TensorRT is what the real bindings have: RTX as installed, 10 and 11 as recorded."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from finercam_rt.tensorrt import api

from ..fakes import tensorrt as fake
from .interfaces import Interface, of_module, recorded

LIBRARIES = sorted(recorded())


def _members(protocol: Any) -> dict[str, list[str] | None]:
    """Of a Protocol, as an interface gives them."""
    members: dict[str, list[str] | None] = {}
    for owner in protocol.__mro__:
        if owner.__module__ == api.__name__:
            members |= {name: None for name in inspect.get_annotations(owner)}
            members |= {
                name: [_name(p) for p in inspect.signature(value).parameters.values() if p.default is p.empty][1:]
                for name, value in vars(owner).items()
                if inspect.isfunction(value) and not name.startswith("_")
            }
    return members


def _name(parameter: inspect.Parameter) -> str:
    """ "*" where it goes by its place alone."""
    return "*" if parameter.kind is parameter.POSITIONAL_ONLY else parameter.name


def _same(found: list[str] | None, wanted: list[str] | None) -> bool:
    if found is None or wanted is None:
        return found is wanted
    return len(found) == len(wanted) and all(b in (a, "*") for a, b in zip(found, wanted, strict=True))


def _check(interface: Interface, classes: dict[str, Any], members: dict[str, tuple[str, ...]]) -> None:
    for name, protocol in classes.items():
        for member, parameters in _members(protocol).items():
            assert member in interface[name], f"{name}.{member}"
            assert _same(interface[name][member], parameters), f"{name}.{member}"
    for name, used in members.items():
        assert set(used) <= set(interface[name]), name
    for name, methods in api.CALLBACKS.items():
        for method, names in methods.items():
            assert interface[name][method] == list(names)


@pytest.mark.parametrize("library", LIBRARIES)
def test_recorded(library):
    _check(recorded()[library], api.CLASSES, api.MEMBERS)


def test_rtx(rtx):
    names = tuple({*api.RTX_CLASSES, *api.RTX_MEMBERS, *api.CALLBACKS})
    _check(of_module(rtx.module, names), api.RTX_CLASSES, api.RTX_MEMBERS)


def test_both_kinds_of_library_are_recorded():
    assert {name.split(" ")[0] for name in LIBRARIES} == {"tensorrt", "tensorrt-stubs"}


def test_the_check_sees_a_wrong_call():
    """So that the tests above can fail."""
    interface = {name: dict(members) for name, members in recorded()[LIBRARIES[0]].items()}
    interface["IBuilderConfig"]["set_timing_cache"] = ["cache"]
    with pytest.raises(AssertionError, match="set_timing_cache"):
        _check(interface, api.CLASSES, api.MEMBERS)
    del interface["IBuilderConfig"]["set_timing_cache"]
    with pytest.raises(AssertionError, match="set_timing_cache"):
        _check(interface, api.CLASSES, api.MEMBERS)


@pytest.mark.parametrize(
    ("protocol", "stands_in"),
    [
        (api.Tensor, fake._Tensor("images", (1,))),
        (api.Network, fake._Network()),
        (api.ParserError, fake._ParserError(0, "")),
        (api.Parser, fake.FakeTensorRT()),
        (api.Profile, fake._Profile()),
        (api.TimingCache, fake._TimingCache(b"")),
        (api.Config, fake._Config(fake.FakeTensorRT())),
        (api.Builder, fake.FakeTensorRT()),
    ],
)
def test_the_fake_has_it_too(protocol, stands_in):
    for name, parameters in _members(protocol).items():
        found = getattr(stands_in, name)
        if parameters is not None:
            taken = inspect.signature(found).parameters.values()
            assert [p.name for p in taken if p.default is p.empty] == parameters
