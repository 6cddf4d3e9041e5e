"""The stacks next to one: one large step elsewhere, one step more or less, another solver or another forecast."""

from __future__ import annotations

from random import Random

from .race import Configuration
from .space import MIN_STEPS, SearchSpace

NEAR_STEPS = 2
"""A large step that is moved goes no further than that as a rule."""
MOVES = ("move", "move", "move", "drop", "add", "resize", "solver", "forecast")


def neighbour(space: SearchSpace, configuration: Configuration, choice: Random) -> Configuration | None:
    """A stack with one thing changed; ``None`` where it leaves nothing of the kind that was drawn to change.

    A large step is moved, more often to near than far, or given to the small denoiser, or there is one more; a small
    step is left out or put in; the solver or the forecast becomes another one of the space. The first step stays.
    """
    letters, sampler, rest = space.taken_apart(configuration)
    kind = choice.choice(MOVES)
    if kind == "solver":
        others = [text for text in space.samplers if text != sampler]
        return space.put_together(letters, choice.choice(others), rest) if others else None
    if kind == "forecast":
        own = next((text for text in rest if text in space.forecasts), None)
        if own is None:
            return None
        other = choice.choice([text for text in space.forecasts if text != own])
        return space.put_together(letters, sampler, tuple(other if text == own else text for text in rest))
    moved = _resized(space, letters, choice) if kind == "resize" else _moved(letters, kind, choice)
    return None if moved is None else space.put_together(moved, sampler, rest)


def _resized(space: SearchSpace, letters: str, choice: Random) -> str | None:
    small = [index for index in range(1, len(letters)) if letters[index] == "S"]
    if choice.random() < 0.5 and small and len(letters) > MIN_STEPS:
        index = choice.choice(small)
        return letters[:index] + letters[index + 1 :]
    if len(letters) >= space.num_steps:
        return None
    index = choice.randrange(1, len(letters) + 1)
    return f"{letters[:index]}S{letters[index:]}"


def _moved(letters: str, kind: str, choice: Random) -> str | None:
    changed = list(letters)
    large = [index for index in range(1, len(letters)) if letters[index] == "L"]
    small = [index for index in range(1, len(letters)) if letters[index] == "S"]
    if (kind != "add" and not large) or (kind != "drop" and not small):
        return None
    if kind == "add":
        changed[choice.choice(small)] = "L"
        return "".join(changed)
    index = choice.choice(large)
    changed[index] = "S"
    if kind == "move":
        near = [other for other in small if abs(other - index) <= NEAR_STEPS]
        changed[choice.choice(near if near and choice.random() < 0.7 else small)] = "L"
    return "".join(changed)
