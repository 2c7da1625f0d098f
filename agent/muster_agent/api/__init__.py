"""LangGraph's server API, as langgraph-sdk, agent-chat-ui and RemoteGraph speak it."""
