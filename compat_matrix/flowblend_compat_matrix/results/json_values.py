"""Objects as JSON holds them: names to texts, numbers, lists and further objects."""

from __future__ import annotations

from typing import Any

JsonObject = dict[str, Any]
