"""A plain host: installing the plugin and the unit, and taking every trace away again."""
