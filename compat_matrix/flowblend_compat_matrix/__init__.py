"""The compatibility matrix: which stacks of accelerations hold, and what each of them gains."""

from flowblend_plugins.moved import redirect

redirect(
    __name__,
    {
        "cells": "flowblend_compat_matrix.results.cells",
        "contract": "flowblend_compat_matrix.testing.contract",
        "embedded_bench": "flowblend_compat_matrix.testing.embedded_bench",
        "executors": "flowblend_compat_matrix.running.executors",
        "expectations": "flowblend_compat_matrix.results.expectations",
        "frontier": "flowblend_research.frontier",
        "frontier.__main__": "flowblend_research.frontier.__main__",
        "metrics": "flowblend_compat_matrix.measuring.metrics",
        "paper_table": "flowblend_research.paper_table",
        "paper_table.__main__": "flowblend_research.paper_table.__main__",
        "pytest_plugin": "flowblend_compat_matrix.testing.pytest_plugin",
        "reference.behaviour": "flowblend_research.training.wan.behaviour",
        "reference.distillation.behaviour": "flowblend_research.training.distillation.behaviour",
        "reference.distillation.train": "flowblend_research.training.distillation.train",
        "reference.text": "flowblend_research.training.text",
        "reference.train": "flowblend_research.training.wan.train",
        "reference.unet.behaviour": "flowblend_research.training.unet.behaviour",
        "reference.unet.train": "flowblend_research.training.unet.train",
        "results": "flowblend_compat_matrix.results.matrix_results",
        "verdicts": "flowblend_compat_matrix.results.verdicts",
        "worker": "flowblend_compat_matrix.running.worker",
    },
)
