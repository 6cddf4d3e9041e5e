"""The two decorators of the plugin contract. ``hookimpl`` is what a plugin author imports."""

import pluggy

PROJECT_NAME = "flowblend_plugins"
HOOK_PREFIX = "flowblend_"

hookspec: pluggy.HookspecMarker = pluggy.HookspecMarker(PROJECT_NAME)
hookimpl: pluggy.HookimplMarker = pluggy.HookimplMarker(PROJECT_NAME)
