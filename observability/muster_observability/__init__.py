"""How every Muster process speaks of itself: logs, metrics, and how it starts and stops.

It knows no part of Muster; each part brings its own metrics and events.
"""
