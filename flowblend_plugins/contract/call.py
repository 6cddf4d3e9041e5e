"""One denoiser call of the pipeline, as a ``flowblend_answer`` hook gets it: it runs denoisers, and is answered."""

from __future__ import annotations

from collections.abc import Callable

from ..step import StepContext
from ..types import Args, KeywordsView, Output

Run = Callable[[StepContext, Args, KeywordsView], Output]


class DenoiserCall:
    """One denoiser call, and the means to answer it with any denoiser, with several, or with none.

    The last denoiser that is run gives the answer as far as the trace is concerned; those before it are recorded as
    extra calls, with their time and FLOPs. An answer for which none is run is a ``predict`` that cost no forward.

    Attributes:
        step: where the call stands, with the schedule's choice (or that of a ``flowblend_route`` hook) in ``denoiser``.
        args, kwargs: of the call, as the pipeline gave them.
        raised: the error of a denoiser that was run, which is not the hook's own.
    """

    __slots__ = ("_run", "args", "is_predicted", "kwargs", "raised", "step")

    def __init__(self, step: StepContext, args: Args, kwargs: KeywordsView, run: Run) -> None:
        self.step: StepContext = step
        self.args: Args = args
        self.kwargs: KeywordsView = kwargs
        self.is_predicted: bool = False
        self.raised: BaseException | None = None
        self._run = run

    def run(self, denoiser: str | None = None) -> Output:
        """The output of a denoiser on this call's inputs; of the one chosen for it where no letter is given.

        A denoiser that was not chosen for this call and has missed steps forgets its cached state, as at a switch.

        Raises:
            PluginError: there is no denoiser of this letter.
        """
        step = self.step if denoiser is None else self.step._replace(denoiser=denoiser)
        return self.run_at(step, self.args, self.kwargs)

    def run_at(self, step: StepContext, args: Args, kwargs: KeywordsView) -> Output:
        """The output of ``step.denoiser`` on inputs that were kept from an earlier call of the same guidance branch."""
        try:
            return self._run(step, args, kwargs)
        except BaseException as error:
            self.raised = error
            raise

    def mark_predicted(self) -> None:
        """Say that the answer is not a denoiser's own output. What was run for it counts in FLOPs all the same."""
        self.is_predicted = True
