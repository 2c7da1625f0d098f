"""Fetching a page for the model, without lending it the network that this service stands in.

The model's address is anybody's: a page that it read can tell it to fetch a cloud's metadata, a database or the
cluster's own services (server-side request forgery). What keeps it out is in `hosts`, `urls` and `addresses`
(what may be asked for) and in `client` and `dialler` (that nothing else is dialled). A network policy should
say the same a second time.
"""

from muster_agent.tools.fetch.settings import FetchSettings
from muster_agent.tools.fetch.tool import open_fetch

__all__ = ["FetchSettings", "open_fetch"]
