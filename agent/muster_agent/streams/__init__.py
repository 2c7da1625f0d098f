"""What a run says while it goes, in LangGraph's two protocols."""
