"""Where the cluster's facts live: one small interface, and embedded SQLite for one machine."""
