"""`muster up`: engine, proxy and agent as three processes under one supervisor."""
