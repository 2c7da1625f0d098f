"""MCP servers as the agent's tools.

`settings` says which servers there are; it is cheap to import. `toolkit.open_mcp` connects to them. Below it:
`listing` is what a server offers and its digests, `tenants` keeps one session for each tenant, `session` is
one connection's life, `client` speaks the protocol on it, `stdio` and `http` are the two ways to a server,
`results` turns answers into text.

It stands on the `mcp` package itself: the adapters for LangChain hand a server's process more of the
environment than it is due, send what it prints to our standard error, and cancel nothing at the server.
"""
