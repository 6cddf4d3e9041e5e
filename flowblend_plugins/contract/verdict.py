"""The declared verdict on a stack, from the traits of its techniques and nothing else."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from .traits import AdapterTraits, Composition, Family, Reason, StackSetting, Verdict

_BEST_TO_WORST = tuple(Composition)

Stack = Sequence[tuple[str, AdapterTraits]]


def judge(stack: Stack, setting: StackSetting, obstacles: Sequence[Reason] = ()) -> Verdict:
    """Judge a stack of techniques on one pipeline from facts alone.

    Args:
        stack: adapter names (for the wording of reasons only) and their traits, in the order they were asked for.
        setting: what is known of the pipeline, the schedule and the call.
        obstacles: further reasons that adapters found themselves on this pipeline.

    Returns:
        The worst verdict that any reason argues for, with all reasons, those for it first. A stack is inert only if all
        of it is; what is inert beside something that is not is told among the reasons.
    """
    reasons = [*obstacles, *_between_adapters(stack)]
    for name, traits in stack:
        reasons += _on_this_pipeline(name, traits, setting)
        reasons += _over_time(name, traits, setting)
    if not reasons:
        found = "no adapter disturbs another, and none keeps state that goes stale" if stack else "nothing is stacked"
        reasons.append(Reason(Composition.COMPOSES, found))
    inert = {reason.adapter for reason in reasons if reason.composition is Composition.INERT}
    compositions = {reason.composition for reason in reasons}
    if Composition.REFUSED not in compositions and not inert.issuperset(name for name, _ in stack):
        compositions.discard(Composition.INERT)
        if not compositions:
            others = ", ".join(repr(name) for name, _ in stack if name not in inert)
            reasons.append(Reason(Composition.COMPOSES, f"nothing disturbs {others}"))
            compositions.add(Composition.COMPOSES)
    composition = max(compositions, key=_BEST_TO_WORST.index)
    reasons.sort(key=lambda reason: (reason.composition is not composition, -_BEST_TO_WORST.index(reason.composition)))
    return Verdict(composition, tuple(reasons))


def _between_adapters(stack: Stack) -> Iterator[Reason]:
    for (a, first), (b, second) in itertools.combinations(stack, 2):
        both = f"{a!r} and {b!r}" if a != b else f"{a!r}, asked for twice,"
        if first.fixes_sigmas and second.fixes_sigmas:
            yield _refused(f"{both} each prescribe their own list of sigmas", "Keep one of the two.")
        elif first.fixes_sigmas or second.fixes_sigmas:
            fixing, changing = (a, b) if first.fixes_sigmas else (b, a)
            if (second if first.fixes_sigmas else first).changes_timesteps:
                yield _refused(
                    f"{fixing!r} prescribes the list of sigmas, and {changing!r} would change it",
                    f"Leave out {changing!r}.",
                )
        elif first.changes_timesteps and second.changes_timesteps:
            yield _refused(f"{both} both decide the sampler and its timesteps", "Keep one of the two.")
        if first.wraps is not None and first.wraps == second.wraps:
            yield _refused(f"{both} both take over the denoiser's {first.wraps}", "Keep one of the two.")
        elif first.family is second.family is Family.FEATURE_CACHING:
            yield _refused(
                f"{both} are two feature caches on one denoiser, so one would cache what the other reused",
                "Keep one of the two.",
            )
        elif first.family is second.family is Family.GUIDANCE:
            yield _refused(f"{both} both decide which guidance passes are computed", "Keep one of the two.")
        for own, compared, name, comparing in ((first, second, a, b), (second, first, b, a)):
            if own.own_guidance and compared.compares_denoisers:
                yield _refused(
                    f"{comparing!r} puts the velocities of two denoisers together, and with {name!r} one of them is "
                    "guided already and the other is not",
                    "Keep one of the two.",
                )
        for few, kept, name, cache in ((first, second, a, b), (second, first, b, a)):
            if few.takes_few_steps and kept.family is Family.FEATURE_CACHING:
                yield Reason(
                    Composition.INERT,
                    f"{name!r} takes few steps, far apart, and {cache!r} reuses only what stays alike between steps",
                    f"Leave out {cache!r}; where it reuses something all the same, the trace shows it.",
                    cache,
                )


def _on_this_pipeline(name: str, traits: AdapterTraits, setting: StackSetting) -> Iterator[Reason]:
    denoiser, pipeline = setting.denoiser_classes[0], setting.pipeline_classes[0]
    if setting.denoiser_kind not in traits.denoiser_kinds:
        yield _refused(
            f"{name!r} runs on a {_listed(traits.denoiser_kinds)}, and the denoiser of {pipeline} is a "
            f"{setting.denoiser_kind}",
            f"Leave out {name!r}.",
        )
    elif traits.denoiser_classes and traits.denoiser_classes.isdisjoint(setting.denoiser_classes):
        yield _refused(
            f"{name!r} runs on {_listed(traits.denoiser_classes)}, and the denoiser is a {denoiser}",
            f"Leave out {name!r}.",
        )
    if traits.pipeline_classes and traits.pipeline_classes.isdisjoint(setting.pipeline_classes):
        yield _refused(
            f"{name!r} runs on {_listed(traits.pipeline_classes)}, and this is a {pipeline}", f"Leave out {name!r}."
        )
    if traits.needs_branches_apart and not setting.branches_called_apart:
        is_known = setting.branches_called_apart is not None
        found = "calls the denoiser once for both" if is_known else "does not say which call is which"
        yield _refused(f"{name!r} tells guidance branches apart, and {pipeline} {found}", f"Leave out {name!r}.")
    elif traits.needs_branches_apart and setting.guidance is False:
        found = f"{name!r} changes one guidance branch, and guidance is off"
        yield Reason(Composition.INERT, found, f"Leave out {name!r}.", name)
    if traits.family is Family.GUIDANCE and setting.guidance is False:
        found = f"{name!r} skips or reuses guidance, and guidance is off"
        yield Reason(Composition.INERT, found, f"Leave out {name!r}.", name)
    if traits.needs_guidance_off and setting.guidance:
        yield _refused(
            f"{name!r} is right only without classifier-free guidance, and guidance is on",
            "Call the pipeline with guidance_scale=1.0.",
        )
    if traits.carries_step_state and not traits.tells_branches_apart and setting.branches_called_apart:
        found = f"{name!r} keeps one state for both guidance branches, and {pipeline} calls the denoiser once for each"
        if setting.guidance:
            yield _refused(
                f"{found}, so one branch would be answered from the other's state",
                f"Call the pipeline with guidance_scale=1.0, leave out {name!r}, or use a cache that tells branches "
                "apart.",
            )
        elif setting.guidance is None:
            yield Reason(Composition.COMPOSES, f"{found}; it is right without guidance, and a call with it is refused")


def _over_time(name: str, traits: AdapterTraits, setting: StackSetting) -> Iterator[Reason]:
    if setting.num_inference_steps is not None and setting.num_inference_steps < traits.min_useful_steps:
        yield Reason(
            Composition.INERT,
            f"{name!r} changes nothing in fewer than {traits.min_useful_steps} steps, and this generation has "
            f"{setting.num_inference_steps}",
            f"Leave out {name!r}, or take more steps.",
            name,
        )
    if traits.changes_only and setting.denoiser_order and traits.changes_only.isdisjoint(setting.denoiser_order):
        yield Reason(
            Composition.INERT,
            f"{name!r} changes denoiser {_listed(traits.changes_only)} alone, and this schedule never calls it",
            f"Leave out {name!r}.",
            name,
        )
    if setting.denoiser_order and not _is_within(traits.needs_in_order, setting.denoiser_order):
        wanted = " after ".join(reversed(traits.needs_in_order))
        yield Reason(
            Composition.INERT,
            f"{name!r} changes nothing unless the schedule calls denoiser {wanted}, and this one never does",
            f"Leave out {name!r}.",
            name,
        )
    if not setting.denoiser_changes:
        return
    if traits.needs_uninterrupted_steps:
        yield _refused(
            f"{name!r} is wrong when a denoiser misses steps, and this schedule changes denoisers",
            f'Leave out {name!r}, or use schedule "LLL" or "SSS".',
        )
    elif traits.carries_step_state and setting.reentry == "recompute":
        yield Reason(
            Composition.COMPOSES_WITH_RESET,
            f"{name!r} keeps a denoiser's state from step to step; it is forgotten when that denoiser returns",
        )
    elif traits.carries_step_state:
        yield Reason(
            Composition.COMPOSES,
            f'{name!r} keeps a denoiser\'s state from step to step, and reentry="keep" lets it be used when it is '
            "stale, as asked",
        )


def _refused(found: str, remedy: str) -> Reason:
    return Reason(Composition.REFUSED, found, remedy)


def _is_within(wanted: Sequence[str], given: Sequence[str]) -> bool:
    """Whether these letters come in this order, whatever lies between."""
    rest = iter(given)
    return all(letter in rest for letter in wanted)


def _listed(names: frozenset[str]) -> str:
    return " or ".join(sorted(names))
