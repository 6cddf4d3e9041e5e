"""Files that calibrations write: one JSON envelope for all of them, and one reader with one set of errors.

The envelope is ``{"api_version": 1, "kind": "...", ...}``. Files written before it named their kind ``technique`` or
``cache``, some without a version; they are still read.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from ..errors import AdapterError, ScheduleError
from ..types import Denoiser, JsonObject, JsonView, KeywordsView, Scheduler

API_VERSION = 1
_KIND_KEYS = ("kind", "technique", "cache")

Measured = TypeVar("Measured")


@dataclass(frozen=True, kw_only=True)
class MeasurementFile(Generic[Measured]):
    """One kind of calibration file.

    Attributes:
        kind: its name in the envelope.
        holds: its content in words, for errors.
        command: the ``flowblend calibrate`` command that writes it.
        parse: makes the result of the JSON object; ``KeyError``, ``TypeError``, ``ValueError`` and ``AttributeError``
            say that the object is damaged.
        error: raised where the file cannot be used.
        built_in: folder of files that are shipped and named without their suffix.
    """

    kind: str
    holds: str
    command: str
    parse: Callable[[KeywordsView], Measured]
    error: type[AdapterError] | type[ScheduleError] = AdapterError
    built_in: Path | None = None

    def envelope(self, content: JsonView) -> JsonObject:
        """The JSON object to write for this content."""
        return {"api_version": API_VERSION, "kind": self.kind, **content}

    def read(self, path: str | Path, option: str | None = None) -> Measured:
        """Read a file, or one of :attr:`built_in` by its name.

        Args:
            path: where the file is.
            option: of the adapter that names the file, for errors.

        Raises:
            AdapterError, ScheduleError: it is not there, or holds something else; with the command that writes one.
        """
        asked = f"{path}" if option is None else f"{option}={str(path)!r}"
        try:
            return self.parse(self._content(asked, self._file(path)))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, self.error):
                raise
            cause = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise self._refusal(f"{asked} holds no {self.holds}: it is damaged or incomplete ({cause})") from error

    def _file(self, path: str | Path) -> Path:
        shipped = {} if self.built_in is None else {file.stem: file for file in self.built_in.glob("*.json")}
        return shipped.get(str(path)) or Path(path).expanduser()

    def _content(self, asked: str, file: Path) -> JsonView:
        try:
            entry = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise self._refusal(f"{asked} cannot be read: there is no such file") from error
        except OSError as error:
            raise self._refusal(f"{asked} cannot be read: {error.strerror or error}") from error
        except (ValueError, RecursionError) as error:
            raise self._refusal(f"{asked} is no JSON file; it cannot be read as JSON ({error})") from error
        if not isinstance(entry, dict):
            raise self._refusal(f"{asked} holds {type(entry).__name__!r}, but {self.kind!r} is needed")
        kinds = [entry[key] for key in _KIND_KEYS if key in entry]
        if not kinds:
            raise self._refusal(
                f"{asked} holds no {self.holds}: its 'kind' or 'technique' is missing, so it was not written by this "
                f"version of `flowblend calibrate {self.command}`"
            )
        others = [kind for kind in kinds if kind != self.kind]
        if others:
            raise self._refusal(f"{asked} holds no {self.holds}: it is of {others[0]}, but {self.kind!r} is needed")
        version = entry.get("api_version", API_VERSION)
        if version != API_VERSION:
            raise self._refusal(f"{asked} is of version {version!r}, but this package reads version {API_VERSION}")
        return {key: value for key, value in entry.items() if key not in ("api_version", *_KIND_KEYS)}

    def _refusal(self, found: str) -> AdapterError | ScheduleError:
        return self.error(f"{found}. Write one with `flowblend calibrate {self.command}`.")


def config_facts(denoiser: Denoiser | Scheduler) -> JsonObject:
    """Config of a denoiser as JSON gives it back, without what diffusers adds (paths, versions)."""
    plain = {key: value for key, value in dict(denoiser.config).items() if not key.startswith("_")}
    return json.loads(json.dumps(plain, default=str))


def denoiser_differences(class_name: str, config: JsonView, denoiser: Denoiser | Scheduler | None) -> list[str]:
    """Differences of the denoiser of this class and config from the given one, in words."""
    if denoiser is None or type(denoiser).__name__ != class_name:
        return [f"class {class_name}, not {type(denoiser).__name__}"]
    there = config_facts(denoiser)
    keys = sorted(config.keys() | there.keys())
    return [f"{k}={config.get(k)!r}, not {there.get(k)!r}" for k in keys if config.get(k) != there.get(k)]
