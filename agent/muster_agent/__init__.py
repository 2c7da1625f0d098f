"""The agent service: a LangGraph agent that thinks on the proxy and answers as an OpenAI model.

It knows the proxy as an HTTP server only, and imports no other part but observability.
"""

import os

# LangChain and LangGraph read these when they are imported, and this file runs before any of ours imports
# them. Nothing of a conversation leaves for a tracing service, and no checkpoint may name code to load,
# unless an operator says otherwise.
os.environ.setdefault("LANGSMITH_TRACING", "false")
os.environ.setdefault("LANGGRAPH_STRICT_MSGPACK", "true")
