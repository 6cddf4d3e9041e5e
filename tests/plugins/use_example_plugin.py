"""Run by the test in a process of its own, where the plugin is installed; prints what it saw as JSON."""

from __future__ import annotations

import json

import flowblend_example.plugin
import numpy as np
import torch
import typer
from typer.testing import CliRunner

import flowblend_plugins as fb
from flowblend_plugins.manager import adapters_by_name, make_plugin_manager, metrics_by_name, pairs_by_name
from flowblend_plugins.testing import generate, tiny_wan_denoiser, tiny_wan_pipeline

torch.set_num_threads(1)


def clamped_by_hand() -> torch.Tensor:
    pipe = tiny_wan_pipeline()
    pipe.transformer.register_forward_hook(lambda module, args, output: (output[0].clamp(-0.3, 0.3),))
    return generate(pipe)


pipe, small = tiny_wan_pipeline(), tiny_wan_denoiser()
plain = generate(pipe)
with fb.enable(pipe, schedule="LLL", adapters=["clamp(limit=0.3)"]):
    equals_by_hand = torch.equal(generate(pipe), clamped_by_hand())
flowblend_example.plugin.ENTERED.clear()
with fb.enable(pipe, small, "LSL", adapters=["clamp(limit=0.3)", "unipc(num_inference_steps=10)"]):
    generate(pipe, None)
entered = list(flowblend_example.plugin.ENTERED)

manager = make_plugin_manager()
app = typer.Typer()
app.command("other")(lambda: None)
manager.hook.flowblend_register_commands(app=app)
print(
    json.dumps(
        {
            "origin": str(manager.origins["example"]),
            "module": flowblend_example.plugin.__file__,
            "adapters": sorted(adapters_by_name(manager)),
            "pair": str(pairs_by_name(manager)["example_pair"].large),
            "metric": metrics_by_name(manager)["largest_difference"](np.array([1.0, 5.0]), np.array([1.0, 2.0])),
            "command": CliRunner().invoke(app, ["example", "you"]).output.strip(),
            "equals_by_hand": equals_by_hand,
            "changed_something": not torch.equal(plain, clamped_by_hand()),
            "restored": torch.equal(generate(pipe), plain),
            "entered": entered,
        }
    )
)
