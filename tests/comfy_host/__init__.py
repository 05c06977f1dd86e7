"""A ComfyUI for machines that have none: get it, start it, send it graphs. `run.py` is its command line.

Until the environment exists only the standard library is used: command_line, session, environment,
download, locate, places, problems. The rest runs inside the environment.
"""
