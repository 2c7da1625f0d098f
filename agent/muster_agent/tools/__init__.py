"""The tools that the agent may use. Each bounds its own time and the size of what it returns."""

from langchain_core.tools import BaseTool

from muster_agent.tools.calculator import calculator
from muster_agent.tools.clock import current_time

TOOLS: tuple[BaseTool, ...] = (calculator, current_time)
