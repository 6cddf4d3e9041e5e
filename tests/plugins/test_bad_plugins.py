"""Plugins gone wrong: what a hook raises or gives is told in one line that names the plugin, and leaves no trace."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch

import flowblend_plugins as fb
from flowblend_plugins.cli import run as run_command
from flowblend_plugins.contract.markers import HOOK_PREFIX
from flowblend_plugins.contract.traits import Family
from flowblend_plugins.errors import notes_of
from flowblend_plugins.manager import make_plugin_manager
from flowblend_plugins.testing import PipelineSnapshot, generate, tiny_wan_denoiser, tiny_wan_pipeline

LOADING = ("flowblend_register_adapters", "flowblend_register_pairs", "flowblend_register_metrics", "flowblend_adopt")
GENERATING = (
    "flowblend_configure_generation",
    "flowblend_route",
    "flowblend_answer",
    "flowblend_stage_entered",
    "flowblend_denoiser_called",
    "flowblend_generation_finished",
)


class Leave(BaseException):
    """What is no Exception, as pytest.exit() raises it."""


def wrong(hook: str, act: Callable[[], Any]) -> Any:
    """A plugin whose hook does this."""
    return type("Wrong", (), {hook: fb.hookimpl(lambda self: act())})()


def raising(error: BaseException) -> Callable[[], Any]:
    def act() -> Any:
        raise error

    return act


@pytest.fixture(scope="module")
def pipe() -> Any:
    pipe = tiny_wan_pipeline()
    generate(pipe, 2)
    return pipe


@pytest.fixture(scope="module")
def small() -> Any:
    return tiny_wan_denoiser()


def run(pipe: Any, small: Any, *plugins: Any, **options: Any) -> fb.Blend:
    with fb.enable(pipe, small, "L:1,S:1", plugins=plugins, **options) as blend:
        generate(pipe, 2)
    return blend


@pytest.mark.parametrize("hook", [*LOADING, *GENERATING])
def test_whatever_a_hook_raises_names_its_plugin(pipe: Any, small: Any, hook: str) -> None:
    before = PipelineSnapshot.of(pipe)
    for error in (SystemExit(0), Leave()):
        with pytest.raises(fb.PluginError, match=f"^plugin 'Wrong' fails in {hook}: {type(error).__name__}"):
            run(pipe, small, wrong(hook, raising(error)))
    with pytest.raises(KeyboardInterrupt) as interrupted:
        run(pipe, small, wrong(hook, raising(KeyboardInterrupt())))
    assert f"Plugin 'Wrong' fails in {hook}" in notes_of(interrupted.value)
    kind = fb.PluginError if hook in LOADING else ZeroDivisionError  # a server may be waiting for an error of its own
    with pytest.raises(kind) as failed:
        run(pipe, small, wrong(hook, lambda: 1 / 0))
    assert "lugin 'Wrong' fails in" in f"{failed.value} {notes_of(failed.value)}"
    generate(pipe, 2)  # a pipeline notes its last call on itself, so both snapshots follow the same one
    assert before.differences(pipe) == []


def test_every_hook_is_tried() -> None:
    hooks = {name for name in vars(fb.hookspecs) if name.startswith(HOOK_PREFIX)}
    assert {*LOADING, *GENERATING} == hooks - {"flowblend_register_commands"}, "which test_the_command_line tries"


def test_the_error_of_a_denoiser_is_not_blamed_on_the_hook_that_runs_it(pipe: Any, small: Any) -> None:
    class Asks:
        @fb.hookimpl
        def flowblend_answer(self, call: fb.DenoiserCall) -> Any:
            return call.run()

    for error in (SystemExit(3), RuntimeError("out of luck"), KeyboardInterrupt()):
        handle = pipe.transformer.register_forward_pre_hook(lambda *_, error=error: raising(error)())
        try:
            with pytest.raises(type(error)) as raised:
                run(pipe, small, Asks())
        finally:
            handle.remove()
        assert raised.value is error
        assert not notes_of(error)


@pytest.mark.parametrize("given", [[None], [5], ["unipc"], "unipc", {"a": 1}, 5, [object()], [torch.zeros(1)]])
def test_what_is_no_plugin_is_refused(pipe: Any, given: Any) -> None:
    with pytest.raises(fb.PluginError, match=r"implements no hook|expected a list of plugin objects"):
        fb.enable(pipe, schedule="LLL", plugins=given)


@pytest.mark.parametrize("given", ["X", "l", 5, [], ("S",), 1.5, b"S", object])
def test_garbage_from_route(pipe: Any, small: Any, given: Any) -> None:
    with pytest.raises(fb.PluginError, match=r"plugin 'Wrong': flowblend_route returned .* at step 0; the denoisers"):
        run(pipe, small, wrong("flowblend_route", lambda: given))


GARBAGE: dict[str, Callable[[Any], Any]] = {
    "number": lambda output: 5,
    "text": lambda output: "reuse",
    "nothing": lambda output: (),
    "no tensor": lambda output: (None,),
    "tensor": lambda output: output[0],
    "list": lambda output: [output[0]],
    "one video of two": lambda output: (output[0][..., :1],),
    "number as tensor": lambda output: (torch.tensor(0.5),),
}


@pytest.mark.parametrize("kind", GARBAGE)
def test_garbage_from_answer(pipe: Any, small: Any, kind: str) -> None:
    class Wrong:
        @fb.hookimpl
        def flowblend_answer(self, call: fb.DenoiserCall) -> Any:
            return GARBAGE[kind](call.run())

    with pytest.raises(fb.PluginError, match=r"plugin 'Wrong': flowblend_answer returned a .* expected a tuple"):
        run(pipe, small, Wrong())


@dataclass(frozen=True, kw_only=True)
class Adapted(fb.Adapter):
    name: ClassVar[str] = "adapted"
    traits: ClassVar[fb.AdapterTraits] = fb.AdapterTraits(family=Family.GUIDANCE, wraps="answer")
    attached: Callable[[fb.AttachTarget], Any]

    def attach(self, target: fb.AttachTarget) -> Any:
        return self.attached(target)


@contextlib.contextmanager
def yielding(value: Any) -> Iterator[Any]:
    yield value


@pytest.mark.parametrize(
    ("attached", "said"),
    [
        (lambda target: None, "attach() gave None, expected a context manager"),
        (lambda target: 5, "attach() gave 5, expected a context manager"),
        (lambda target: iter([None]), "expected a context manager"),
        (lambda target: yielding(5), "adapter 'adapted' is 5, which implements no hook"),
        (lambda target: raising(SystemExit(0))(), "adapter 'adapted' fails in attach(): SystemExit: 0"),
        (lambda target: raising(Leave())(), "adapter 'adapted' fails in attach(): Leave"),
    ],
)
def test_garbage_from_attach(pipe: Any, attached: Any, said: str) -> None:
    before = PipelineSnapshot.of(pipe)
    with pytest.raises(fb.PluginError) as refused:
        fb.enable(pipe, schedule="LLL", adapters=[Adapted(attached=attached)])
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
    assert before.differences(pipe) == []


def test_report_outcome_is_honoured_in_an_answer(pipe: Any, small: Any) -> None:
    """The order of saying and running makes no difference, and no word is left over for the next call."""

    class Reporting:
        def __init__(self, trace: Any) -> None:
            self.trace = trace

        @fb.hookimpl
        def flowblend_answer(self, call: fb.DenoiserCall) -> Any:
            step = call.step
            if step.step_index == 0:
                return None
            if step.step_index == 1:  # nothing is run
                self.trace.report_outcome("reuse")
                return (torch.zeros_like(call.kwargs["hidden_states"]),)
            if step.branch == "cond":
                output = call.run()
                self.trace.report_outcome("reuse")
                return output
            self.trace.report_outcome("predict")
            return call.run()

    adapter = Adapted(attached=lambda target: yielding(Reporting(target.trace)))
    with fb.enable(pipe, schedule="LLL", adapters=[adapter]) as blend:
        generate(pipe, 3)
    assert blend.trace.last is not None
    calls = blend.trace.last.calls
    assert [call.outcome for call in calls] == ["compute"] * 2 + ["reuse"] * 3 + ["predict"]
    assert [call.has_run for call in calls] == [True, True, False, False, True, True], "what ran counts in FLOPs"


def test_an_outcome_that_does_not_exist_is_refused(pipe: Any) -> None:
    with fb.enable(pipe, schedule="LLL") as blend, pytest.raises(fb.PluginError, match=r"'hit'\).*'compute', 'reuse'"):
        blend.trace.reporter.report_outcome("hit")  # type: ignore[arg-type]


# -- the command line ----------------------------------------------------------------------------------------------

COMMANDS = """
import flowblend_plugins
@flowblend_plugins.hookimpl
def flowblend_register_commands(app):
    raise {error}
"""


@pytest.mark.parametrize("error", ["SystemExit(0)", "KeyboardInterrupt", "GeneratorExit", "OSError('gone')"])
@pytest.mark.parametrize("source", ["raise {error}", COMMANDS], ids=["import", "commands"])
def test_the_command_line_names_the_plugin(
    install: Callable[..., None], capsys: pytest.CaptureFixture[str], source: str, error: str
) -> None:
    install("broken-dist", "broken", source.format(error=error))

    def line(*arguments: str) -> tuple[int, str]:
        code, told = run_command(arguments), capsys.readouterr()
        lines = told.err.strip().splitlines()
        assert len(lines) == 1, lines
        assert "lugin 'broken' of broken-dist 2.5" in lines[0]
        assert "FLOWBLEND_BLOCK=broken" in lines[0]
        return code, told.out

    for command in (("plugins",), ("matrix", "run", "--schedule", "LLL"), ("run",)):
        code, out = line(*command)
        assert code == (130 if error == "KeyboardInterrupt" else 1)
        assert not out
    code, out = line("--version")
    assert (code, out.strip()) == (0, f"flowblend-plugins {fb.__version__}")


@pytest.mark.parametrize("source", ["raise {error}", COMMANDS], ids=["import", "commands"])
def test_the_doctor_names_the_plugin(
    install: Callable[..., None], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    monkeypatch.setattr("flowblend_plugins.cli.doctor._blended_generation", lambda: ("ok", "not tried here"))
    for error in ("SystemExit(0)", "KeyboardInterrupt"):
        install(f"{error[:4]}-dist", error[:4], source.format(error=error))
        monkeypatch.setenv("FLOWBLEND_BLOCK", "" if error == "SystemExit(0)" else "Syst")
        assert run_command(["doctor", "--json"]) == 1
        findings = {found["what"]: found for found in json.loads(capsys.readouterr().out)["findings"]}
        assert findings["plugins"]["state"] == "broken"
        assert f"lugin '{error[:4]}' of {error[:4]}-dist 2.5" in findings["plugins"]["detail"]


def test_a_plugin_that_loads_is_not_blamed(install: Callable[..., None]) -> None:
    install("good-dist", "good", "")
    make_plugin_manager()
