"""The rules around model calls and tool calls, one a module.

They wrap calls rather than being nodes of the graph: a node is one more step of it, with one more checkpoint.
"""

from muster_agent.agents.middleware.at_most_once import AtMostOnce
from muster_agent.agents.middleware.limits import ToolLimits
from muster_agent.agents.middleware.model_calls import ModelCalls
from muster_agent.agents.middleware.summaries import LongConversations
from muster_agent.agents.middleware.tool_errors import ToolErrors

__all__ = ["AtMostOnce", "LongConversations", "ModelCalls", "ToolErrors", "ToolLimits"]
